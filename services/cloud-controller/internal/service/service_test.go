package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/cloud-controller/internal/provider/providertest"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a cluster in memory with the controller at work.
type rig struct {
	t     *testing.T
	c     *client.Client
	cloud *providertest.Fake
	ctrl  *Controller
	seen  *client.Cache[*corev1.Service]
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, c: clienttest.Start(t), cloud: providertest.NewFake()}
	caches := Caches{
		Services: client.NewCache(r.c, client.CacheOptions[*corev1.Service]{}),
		Nodes:    client.NewCache(r.c, client.CacheOptions[*corev1.Node]{}),
		Slices: client.NewCache(r.c, client.CacheOptions[*discoveryv1.EndpointSlice]{
			Indexes: map[string]func(*discoveryv1.EndpointSlice) []string{ByService: SliceIndex},
		}),
	}
	r.seen = caches.Services
	events := event.NewRecorder(r.c, "cloud-controller", "test")
	r.ctrl = New("test", r.c, caches, r.cloud, events)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{
		caches.Services.Run, caches.Nodes.Run, caches.Slices.Run, events.Run,
		func(ctx context.Context) error { return controller.Run(ctx, r.ctrl.Controller()) },
	} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func create[T client.Object](r *rig, obj T) T {
	r.t.Helper()
	out, err := client.For[T](r.c).Create(r.t.Context(), obj)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// edit changes an object, however many conflicts there are.
func edit[T client.Object](r *rig, obj T, status bool, change func(T)) {
	r.t.Helper()
	res := client.For[T](r.c)
	r.eventually("the change is written", func() error {
		current, err := res.Get(r.t.Context(), obj.GetNamespace(), obj.GetName())
		if err != nil {
			return err
		}
		change(current)
		if status {
			_, err = res.UpdateStatus(r.t.Context(), current)
		} else {
			_, err = res.Update(r.t.Context(), current)
		}
		return err
	})
}

// eventually polls for at most a minute until ok returns nil.
func (r *rig) eventually(what string, ok func() error) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("not within a minute: %s: %v", what, err)
		}
		<-tick.C
	}
}

func (r *rig) get() (*corev1.Service, error) {
	return client.For[*corev1.Service](r.c).Get(r.t.Context(), "default", "web")
}

// hasAddress waits until the Service has an address, and returns it.
func (r *rig) hasAddress() *corev1.Service {
	r.t.Helper()
	var svc *corev1.Service
	r.eventually("the service has an address", func() (err error) {
		if svc, err = r.get(); err != nil {
			return err
		}
		if in := svc.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP == "" || in[0].IPMode == nil || *in[0].IPMode != corev1.LoadBalancerIPModeVIP {
			return fmt.Errorf("ingress %+v", in)
		}
		return nil
	})
	return svc
}

// leadsTo waits until the load balancer leads to these nodes, "name:weight".
func (r *rig) leadsTo(svc *corev1.Service, want ...string) {
	r.t.Helper()
	r.eventually("the load balancer leads to "+strings.Join(want, ", "), func() error {
		lb, ok := r.cloud.Balancer(string(svc.UID))
		var got []string
		for _, target := range lb.Targets {
			got = append(got, fmt.Sprintf("%s:%d", target.Name, target.Weight))
		}
		if !ok || !slices.Equal(got, want) {
			return fmt.Errorf("it leads to %v", got)
		}
		return nil
	})
}

func (r *rig) hasEvents(want ...string) {
	r.t.Helper()
	r.eventually("events "+strings.Join(want, ", "), func() error {
		list, _, err := client.For[*corev1.Event](r.c).List(r.t.Context(), client.ListOptions{})
		if err != nil {
			return err
		}
		var got []string
		for _, e := range list {
			got = append(got, e.Reason)
		}
		for _, w := range want {
			if !slices.Contains(got, w) {
				return fmt.Errorf("there are %v", got)
			}
		}
		return nil
	})
}

func TestLifeOfALoadBalancer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := create(r, testNode("a", "10.89.0.11"))
	create(r, testNode("b", "10.89.0.12", notReady))
	create(r, testService())
	svc := r.hasAddress()
	if !slices.Contains(svc.Finalizers, Finalizer) {
		t.Error("the service has an address and no finalizer")
	}
	r.leadsTo(svc, "a:0")
	r.hasEvents("EnsuringLoadBalancer", "EnsuredLoadBalancer")

	// Nodes come and go.
	edit(r, testNode("b", ""), true, func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue })
	r.leadsTo(svc, "a:0", "b:0")
	r.hasEvents("UpdatedLoadBalancer")
	if err := client.For[*corev1.Node](r.c).Delete(t.Context(), "", a.Name); err != nil {
		t.Fatal(err)
	}
	r.leadsTo(svc, "b:0")

	// A heartbeat asks for nothing. (Before the controller sees the address that it
	// wrote itself, it may ask again.)
	if err := r.seen.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.leadsTo(svc, "b:0")
	before := r.cloud.Ensures(string(svc.UID))
	edit(r, testNode("b", ""), true, func(n *corev1.Node) { n.Status.Conditions[0].Message = "still here" })
	other := create(r, testService(func(s *corev1.Service) { s.Name, s.UID = "other", "" })) // a marker that the events were seen
	r.leadsTo(other, "b:0")
	if n := r.cloud.Ensures(string(svc.UID)) - before; n != 0 {
		t.Errorf("%d calls after a heartbeat, want none", n)
	}

	if err := client.For[*corev1.Service](r.c).Delete(t.Context(), "default", "web"); err != nil {
		t.Fatal(err)
	}
	r.eventually("the service is gone", func() error {
		if _, err := r.get(); !apierrors.IsNotFound(err) {
			return fmt.Errorf("get: %w", err)
		}
		return nil
	})
	if _, ok := r.cloud.Balancer(string(svc.UID)); ok {
		t.Error("the service is gone before its load balancer")
	}
	r.hasEvents("DeletingLoadBalancer", "DeletedLoadBalancer")
}

func TestPolicyLocalFollowsEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	create(r, testNode("a", "10.89.0.11"))
	create(r, testNode("b", "10.89.0.12"))
	create(r, testService(local))
	create(r, testSlice("a", "a"))
	svc := r.hasAddress()
	r.leadsTo(svc, "a:2")
	edit(r, testSlice(), false, func(s *discoveryv1.EndpointSlice) { s.Endpoints = testSlice("a", "b").Endpoints })
	r.leadsTo(svc, "a:1", "b:1")
	edit(r, testSlice(), false, func(s *discoveryv1.EndpointSlice) { s.Endpoints = testSlice("a!", "b").Endpoints })
	r.leadsTo(svc, "b:1")
}

func TestAnotherTypeOrClassGivesTheAddressBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	create(r, testNode("a", "10.89.0.11"))
	create(r, testService())
	svc := r.hasAddress()
	edit(r, testService(), false, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
	r.eventually("the address is given back", func() error {
		s, err := r.get()
		if err != nil {
			return err
		}
		if len(s.Status.LoadBalancer.Ingress) > 0 || len(s.Finalizers) > 0 {
			return fmt.Errorf("%v %v", s.Status.LoadBalancer, s.Finalizers)
		}
		return nil
	})
	if _, ok := r.cloud.Balancer(string(svc.UID)); ok {
		t.Error("the load balancer is still there")
	}
}

func TestFailuresAreToldAndRetried(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cloud.Fail(errors.New("quota exceeded"))
	create(r, testNode("a", "10.89.0.11"))
	create(r, testService())
	r.hasEvents("EnsuringLoadBalancer", "SyncLoadBalancerFailed")
	r.cloud.Fail(nil)
	svc := r.hasAddress()

	// A provider that does not let go keeps the Service.
	r.cloud.Fail(errors.New("the cloud is down"))
	if err := client.For[*corev1.Service](r.c).Delete(t.Context(), "default", "web"); err != nil {
		t.Fatal(err)
	}
	r.hasEvents("DeleteLoadBalancerFailed")
	if _, err := r.get(); err != nil {
		t.Fatalf("the service went before its load balancer: %v", err)
	}
	r.cloud.Fail(nil)
	r.eventually("the service is gone", func() error {
		if _, err := r.get(); !apierrors.IsNotFound(err) {
			return fmt.Errorf("get: %w", err)
		}
		return nil
	})
	if _, ok := r.cloud.Balancer(string(svc.UID)); ok {
		t.Error("the load balancer is still there")
	}
}

func TestOrphansAreRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	create(r, testNode("a", "10.89.0.11"))
	create(r, testService())
	svc := r.hasAddress()
	lb := providertest.Balancer("nobodys")
	lb.Cluster = "test"
	if _, err := r.cloud.EnsureLoadBalancer(t.Context(), lb); err != nil {
		t.Fatal(err)
	}
	if err := r.ctrl.removeOrphans(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.cloud.Balancer("nobodys"); ok {
		t.Error("the orphan is still there")
	}
	if _, ok := r.cloud.Balancer(string(svc.UID)); !ok {
		t.Error("a service's load balancer was removed as an orphan")
	}
}
