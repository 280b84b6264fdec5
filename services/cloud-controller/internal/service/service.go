// Package service gives Services of type LoadBalancer an address that is
// reachable from outside: it asks the provider for a load balancer in front of
// the cluster's Ready nodes, writes the address into the Service's status, and
// has the load balancer removed with the Service.
//
// It must never remove its finalizer from a Service before the provider has removed the
// load balancer, nor delete a load balancer whose Service the cache merely does not
// show yet.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
)

// ByService is the index of EndpointSlices by namespace/name of their Service.
const ByService = "service"

// Caches holds what the controller reads. The program runs the caches.
type Caches struct {
	Services *client.Cache[*corev1.Service]
	Nodes    *client.Cache[*corev1.Node]
	// Slices has the index ByService.
	Slices *client.Cache[*discoveryv1.EndpointSlice]
}

// SliceIndex is the index function of ByService.
func SliceIndex(s *discoveryv1.EndpointSlice) []string {
	if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
		return []string{s.Namespace + "/" + name}
	}
	return nil
}

// resync is the interval at which an unchanged load balancer is ensured again, because
// a provider may have lost it.
const resync = 5 * time.Minute

// orphanEvery is how often the controller looks for load balancers without a Service.
const orphanEvery = 5 * time.Minute

// Controller keeps the load balancers that Services want.
type Controller struct {
	cluster  string
	client   *client.Client
	caches   Caches
	provider provider.Provider
	events   *event.Recorder
	now      func() time.Time

	mu      sync.Mutex
	ensured map[types.UID]ensured
}

// ensured is the last request to the provider, with its response.
type ensured struct {
	request provider.LoadBalancer
	addrs   []netip.Addr
	at      time.Time
}

// New returns the controller of a cluster.
func New(cluster string, c *client.Client, caches Caches, p provider.Provider, events *event.Recorder) *Controller {
	return &Controller{
		cluster: cluster, client: c, caches: caches, provider: p, events: events, now: time.Now,
		ensured: map[types.UID]ensured{},
	}
}

// Controller returns the control loop.
func (c *Controller) Controller() controller.Controller {
	return controller.Controller{
		Name: "service", Workers: 4, Reconcile: c.reconcile,
		Sources: []controller.Source{
			controller.From(c.caches.Services, func(ev client.Event[*corev1.Service]) []controller.Key {
				if !concerns(ev.Object) && (ev.Old == nil || !concerns(ev.Old)) {
					return nil
				}
				return []controller.Key{client.KeyOf(ev.Object)}
			}),
			controller.From(c.caches.Nodes, c.onNode),
			controller.From(c.caches.Slices, c.onSlice),
		},
		MaxBackoff: 30 * time.Second,
	}
}

func concerns(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer || has(svc)
}

// onNode enqueues all load balancers when a node is added or removed, or starts or
// stops taking traffic. Heartbeats do not matter.
func (c *Controller) onNode(ev client.Event[*corev1.Node]) []controller.Key {
	if ev.Type == client.Modified && ev.Old != nil {
		oldAddr, _ := internalIP(ev.Old)
		newAddr, _ := internalIP(ev.Object)
		if takesTraffic(ev.Old) == takesTraffic(ev.Object) && oldAddr == newAddr {
			return nil
		}
	}
	var keys []controller.Key
	for _, svc := range c.caches.Services.List() {
		if wants(svc) {
			keys = append(keys, client.KeyOf(svc))
		}
	}
	return keys
}

// onSlice enqueues a Service with policy Local when its endpoints change.
func (c *Controller) onSlice(ev client.Event[*discoveryv1.EndpointSlice]) []controller.Key {
	name := ev.Object.Labels[discoveryv1.LabelServiceName]
	svc, ok := c.caches.Services.Get(ev.Object.Namespace, name)
	if !ok || !wants(svc) || !keepsLocal(svc) {
		return nil
	}
	return []controller.Key{client.KeyOf(svc)}
}

func (c *Controller) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	svc, ok := c.caches.Services.Get(key.Namespace, key.Name)
	switch {
	case !ok:
		return controller.Result{}, nil
	case wants(svc):
		err := c.ensure(ctx, svc)
		if err != nil && !retriable(err) {
			c.events.Warning(ctx, svc, "SyncLoadBalancerFailed", "Error syncing load balancer: %v", err)
		}
		return controller.Result{RequeueAfter: resync}, quiet(err)
	case has(svc):
		err := c.release(ctx, svc)
		if err != nil && !retriable(err) {
			c.events.Warning(ctx, svc, "DeleteLoadBalancerFailed", "Error deleting load balancer: %v", err)
		}
		return controller.Result{}, quiet(err)
	}
	c.forget(svc.UID)
	return controller.Result{}, nil
}

// retriable reports whether an error only means that the cache was behind, which is of
// no interest to the user.
func retriable(err error) bool { return apierrors.IsConflict(err) }

// quiet returns nil for errors that an object no longer exists, and err otherwise.
func quiet(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// ensure writes the finalizer, then the load balancer, then the Service's status.
func (c *Controller) ensure(ctx context.Context, svc *corev1.Service) error {
	want := request(c.cluster, svc, c.caches.Nodes.List(), c.caches.Slices.ByIndex(ByService, svc.Namespace+"/"+svc.Name))
	last, known := c.last(svc.UID)
	changed := !known || !reflect.DeepEqual(last.request, want)
	if !changed && c.now().Sub(last.at) < resync && has(svc) && sameIngress(svc.Status.LoadBalancer.Ingress, ingress(last.addrs)) {
		return nil
	}
	fresh := len(svc.Status.LoadBalancer.Ingress) == 0
	if fresh && !known {
		c.events.Normal(ctx, svc, "EnsuringLoadBalancer", "Ensuring load balancer")
	}
	if !has(svc) {
		added := svc.DeepCopy()
		added.Finalizers = append(added.Finalizers, Finalizer)
		updated, err := client.For[*corev1.Service](c.client).Update(ctx, added)
		if err != nil {
			return fmt.Errorf("add finalizer: %w", err)
		}
		svc = updated
	}
	addrs, err := c.provider.EnsureLoadBalancer(ctx, want)
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		return errors.New("the provider gave no address")
	}
	if status := ingress(addrs); !sameIngress(svc.Status.LoadBalancer.Ingress, status) {
		patched := svc.DeepCopy()
		patched.Status.LoadBalancer.Ingress = status
		if _, err := client.For[*corev1.Service](c.client).UpdateStatus(ctx, patched); err != nil {
			return fmt.Errorf("write address %s: %w", addrs[0], err)
		}
	}
	c.remember(svc.UID, ensured{want, addrs, c.now()})
	switch {
	case fresh:
		c.events.Normal(ctx, svc, "EnsuredLoadBalancer", "Ensured load balancer")
	case known && changed && !slices.Equal(last.request.Targets, want.Targets):
		c.events.Normal(ctx, svc, "UpdatedLoadBalancer", "Updated load balancer with new hosts")
	}
	return nil
}

// release removes the load balancer, then clears the status, then removes the
// finalizer.
func (c *Controller) release(ctx context.Context, svc *corev1.Service) error {
	c.events.Normal(ctx, svc, "DeletingLoadBalancer", "Deleting load balancer")
	if err := c.provider.DeleteLoadBalancer(ctx, c.cluster, string(svc.UID)); err != nil {
		return err
	}
	c.forget(svc.UID)
	services := client.For[*corev1.Service](c.client)
	free := svc.DeepCopy()
	// An address written by another controller is left alone.
	mine := svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass == Class
	if len(free.Status.LoadBalancer.Ingress) > 0 && mine {
		free.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		updated, err := services.UpdateStatus(ctx, free)
		if err != nil {
			return fmt.Errorf("clear the address: %w", err)
		}
		free = updated.DeepCopy()
	}
	free.Finalizers = slices.DeleteFunc(free.Finalizers, func(s string) bool { return s == Finalizer })
	if _, err := services.Update(ctx, free); err != nil {
		return fmt.Errorf("remove finalizer: %w", err)
	}
	c.events.Normal(ctx, svc, "DeletedLoadBalancer", "Deleted load balancer")
	return nil
}

// RunOrphans removes load balancers without a Service, every orphanEvery until ctx
// ends. The caches must be synced.
func (c *Controller) RunOrphans(ctx context.Context) error {
	tick := time.NewTicker(orphanEvery)
	defer tick.Stop()
	for {
		if err := c.removeOrphans(ctx); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "load balancers without a service were not removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// removeOrphans reads each candidate's Service from the apiserver, because a Service
// that the cache does not show may be newer than the cache.
func (c *Controller) removeOrphans(ctx context.Context) error {
	ids, err := c.provider.ListLoadBalancers(ctx, c.cluster)
	if err != nil {
		return err
	}
	c.forgetGone()
	unknown := c.without(ids, c.caches.Services.List())
	if len(unknown) == 0 {
		return nil
	}
	services, _, err := client.For[*corev1.Service](c.client).List(ctx, client.ListOptions{})
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range c.without(unknown, services) {
		slog.InfoContext(ctx, "load balancer without a service is removed", "id", id)
		errs = append(errs, c.provider.DeleteLoadBalancer(ctx, c.cluster, id))
	}
	return errors.Join(errs...)
}

func (c *Controller) without(ids []string, services []*corev1.Service) []string {
	known := map[string]bool{}
	for _, s := range services {
		known[string(s.UID)] = true
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return known[id] })
}

// forgetGone drops the state of Services whose finalizer was removed by another client.
func (c *Controller) forgetGone() {
	known := map[types.UID]bool{}
	for _, s := range c.caches.Services.List() {
		known[s.UID] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid := range c.ensured {
		if !known[uid] {
			delete(c.ensured, uid)
		}
	}
}

// InUse returns a function that returns the addresses of Services, by uid, for the local
// provider.
func InUse(services *client.Cache[*corev1.Service]) func() map[string]netip.Addr {
	return func() map[string]netip.Addr {
		out := map[string]netip.Addr{}
		for _, s := range services.List() {
			for _, in := range s.Status.LoadBalancer.Ingress {
				if addr, err := netip.ParseAddr(in.IP); err == nil {
					out[string(s.UID)] = addr
				}
			}
		}
		return out
	}
}

func (c *Controller) last(uid types.UID) (ensured, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.ensured[uid]
	return e, ok
}

func (c *Controller) remember(uid types.UID, e ensured) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ensured[uid] = e
}

func (c *Controller) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ensured, uid)
}
