package registration

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/internal/fence"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/fencing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("timed out waiting until " + what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func machine(t *testing.T) *Machine {
	t.Helper()
	reserve := func(corev1.ResourceList) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("100Mi")}
	}
	m, err := ReadMachine(t.TempDir(), reserve, 110, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// healthy returns a Health in a given state.
func healthy(problem, network string) *Health {
	return &Health{problem: problem, network: network, info: "containerd://1.2.3", recovered: func() {}}
}

func begin(t *testing.T, cfg Config) *Registration {
	t.Helper()
	r := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func conditionOf(n *corev1.Node, kind corev1.NodeConditionType) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func TestRegistration(t *testing.T) {
	ctx := context.Background()
	c := clienttest.Start(t)
	nodes := client.For[*corev1.Node](c)
	h := healthy("", "")
	r := begin(t, Config{
		Name: "node-a", Client: c, Machine: machine(t), Health: h, Address: "192.0.2.7", External: true,
		Labels: map[string]string{"zone": "z"}, Taints: []corev1.Taint{{Key: "k", Value: "v", Effect: corev1.TaintEffectNoSchedule}},
	})
	get := func() *corev1.Node {
		n, err := nodes.Get(ctx, "", "node-a")
		if err != nil {
			return &corev1.Node{}
		}
		return n
	}
	until(t, "the node is registered and ready", func() bool { return conditionOf(get(), corev1.NodeReady).Status == corev1.ConditionTrue })
	n := get()
	if n.Labels["zone"] != "z" || n.Labels[corev1.LabelHostname] != "node-a" || len(n.Spec.Taints) != 2 || n.Spec.Taints[1].Key != "node.cloudprovider.kubernetes.io/uninitialized" {
		t.Errorf("object: %+v", n.ObjectMeta)
	}
	memory, allocatable := n.Status.Capacity[corev1.ResourceMemory], n.Status.Allocatable[corev1.ResourceMemory]
	if memory.Value()-allocatable.Value() != 100<<20 || n.Status.NodeInfo.ContainerRuntimeVersion != "containerd://1.2.3" || n.Status.Addresses[0].Address != "192.0.2.7" {
		t.Errorf("status: %+v", n.Status)
	}
	// What others write is kept: addresses of the cloud, a removed taint, a condition of a
	// controller.
	write := func(change func(*corev1.Node) error) { // retry: the node itself writes the object too
		t.Helper()
		until(t, "the other writer succeeds", func() bool {
			err := change(get())
			if err != nil && !apierrors.IsConflict(err) {
				t.Fatal(err)
			}
			return err == nil
		})
	}
	write(func(n *corev1.Node) error {
		n.Spec.Taints = nil
		n.Labels["mine"] = "x"
		delete(n.Labels, "zone")
		_, err := nodes.Update(ctx, n)
		return err
	})
	write(func(n *corev1.Node) error {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "203.0.113.1"})
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: "Other", Status: corev1.ConditionTrue})
		_, err := nodes.UpdateStatus(ctx, n)
		return err
	})
	h.mu.Lock()
	h.problem = "connection refused"
	h.mu.Unlock()
	until(t, "the node is not ready", func() bool { return conditionOf(get(), corev1.NodeReady).Status == corev1.ConditionFalse })
	n = get()
	if m := conditionOf(n, corev1.NodeReady).Message; m != "container runtime is down: connection refused" {
		t.Errorf("message: %q", m)
	}
	until(t, "its own label is back", func() bool { return get().Labels["zone"] == "z" })
	n = get()
	if len(n.Spec.Taints) != 0 || n.Labels["mine"] != "x" || len(n.Status.Addresses) != 3 || conditionOf(n, "Other").Status != corev1.ConditionTrue {
		t.Errorf("changes of other writers: %+v %+v", n.Spec, n.Status.Addresses)
	}
	h.mu.Lock()
	h.problem = ""
	h.mu.Unlock()
	until(t, "the node is ready again", func() bool { return conditionOf(get(), corev1.NodeReady).Status == corev1.ConditionTrue })
	if got := r.HostIPs(); len(got) != 1 || got[0] != "192.0.2.7" {
		t.Errorf("addresses: %v", got)
	}
	// A controller marks the node as unknown. The node sets Ready again at once.
	write(func(n *corev1.Node) error {
		for i := range n.Status.Conditions {
			if n.Status.Conditions[i].Type == corev1.NodeReady {
				n.Status.Conditions[i].Status = corev1.ConditionUnknown
			}
		}
		_, err := nodes.UpdateStatus(ctx, n)
		return err
	})
	until(t, "the node is ready again", func() bool { return conditionOf(get(), corev1.NodeReady).Status == corev1.ConditionTrue })
	// Nothing changes, so nothing is written.
	version := get().ResourceVersion
	deadline := time.Now().Add(1500 * time.Millisecond)
	until(t, "a while has passed", func() bool { return time.Now().After(deadline) })
	if got := get().ResourceVersion; got != version {
		t.Errorf("version %s became %s", version, got)
	}
	// The Node is deleted and registered again.
	if err := nodes.Delete(ctx, "", "node-a"); err != nil {
		t.Fatal(err)
	}
	until(t, "the node is registered again", func() bool { return conditionOf(get(), corev1.NodeReady).Status == corev1.ConditionTrue })
}

// TestForeignResources checks that extended resources in a node's capacity are kept and are
// allocatable, and that resources that have been removed from the capacity are no longer
// allocatable.
func TestForeignResources(t *testing.T) {
	r := New(Config{Name: "a", Machine: machine(t), Health: healthy("", "")})
	node := &corev1.Node{Status: *r.status(&corev1.Node{}, time.Now())}
	own := node.Status.DeepCopy()
	const dongle, stale = corev1.ResourceName("example.com/dongle"), corev1.ResourceName("example.com/stale")
	node.Status.Capacity[dongle] = resource.MustParse("2")
	node.Status.Capacity[corev1.ResourcePods] = resource.MustParse("9999")
	node.Status.Allocatable[stale] = resource.MustParse("1")
	got := r.status(node, time.Now())
	for what, list := range map[string]corev1.ResourceList{"capacity": got.Capacity, "allocatable": got.Allocatable} {
		if q := list[dongle]; q.Value() != 2 {
			t.Errorf("%s: %s", what, q.String())
		}
		delete(list, dongle)
	}
	if !sameStatus(own, got) {
		t.Errorf("the node's own resources: %v of %v", got.Allocatable, got.Capacity)
	}
	if _, leaked := r.cfg.Machine.Capacity[dongle]; leaked {
		t.Error("the machine's capacity was modified")
	}
}

func TestConditions(t *testing.T) {
	for name, c := range map[string]struct {
		problem, network string
		ready            corev1.ConditionStatus
		unavailable      corev1.ConditionStatus
		message          string
	}{
		"all is well": {"", "", corev1.ConditionTrue, corev1.ConditionFalse, "kubelet is posting ready status"},
		"no runtime":  {"gone", "", corev1.ConditionFalse, "", "container runtime is down: gone"},
		"no network":  {"", "no CNI", corev1.ConditionFalse, corev1.ConditionTrue, "container runtime network not ready: no CNI"},
	} {
		r := New(Config{Name: "n", Client: clienttest.Start(t), Machine: machine(t), Health: healthy(c.problem, c.network)})
		n := &corev1.Node{Status: *r.status(&corev1.Node{}, time.Now())}
		if got := conditionOf(n, corev1.NodeReady); got.Status != c.ready || got.Message != c.message {
			t.Errorf("%s: %+v", name, got)
		}
		if got := conditionOf(n, corev1.NodeNetworkUnavailable); got.Status != c.unavailable {
			t.Errorf("%s: %+v", name, got)
		}
		kinds := []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}
		for _, kind := range kinds {
			if got := conditionOf(n, kind); got.Status != corev1.ConditionFalse || !strings.HasPrefix(got.Reason, "KubeletHas") {
				t.Errorf("%s: %+v", name, got)
			}
			r.cfg.Pressure = func() []corev1.NodeConditionType { return []corev1.NodeConditionType{kind} }
			under := &corev1.Node{Status: *r.status(&corev1.Node{}, time.Now())}
			for _, other := range kinds {
				if got := conditionOf(under, other).Status; (got == corev1.ConditionTrue) != (other == kind) {
					t.Errorf("%s: with %s, %s is %s", name, kind, other, got)
				}
			}
			r.cfg.Pressure = nil
		}
	}
}

// TestRuntimeHandlers checks that the node reports the runtime's handlers, sorted, and what
// they support.
func TestRuntimeHandlers(t *testing.T) {
	h := healthy("", "")
	h.take(&runtimev1.StatusResponse{
		RuntimeHandlers: []*runtimev1.RuntimeHandler{{Name: "runc"}, {Name: "", Features: &runtimev1.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}},
		Features:        &runtimev1.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}, time.Now())
	r := New(Config{Name: "n", Client: clienttest.Start(t), Machine: machine(t), Health: h})
	s := r.status(&corev1.Node{}, time.Now())
	if len(s.RuntimeHandlers) != 2 || s.RuntimeHandlers[0].Name != "" || !*s.RuntimeHandlers[0].Features.RecursiveReadOnlyMounts || *s.RuntimeHandlers[0].Features.UserNamespaces || s.RuntimeHandlers[1].Features != nil {
		t.Errorf("handlers: %+v", s.RuntimeHandlers)
	}
	if s.Features == nil || !*s.Features.SupplementalGroupsPolicy {
		t.Errorf("features: %+v", s.Features)
	}
	if f := h.Features(""); f.RecursiveReadOnlyMounts == nil || !*f.RecursiveReadOnlyMounts {
		t.Errorf("features of the default handler: %+v", f)
	}
	if f := h.Features("other"); f.RecursiveReadOnlyMounts != nil {
		t.Errorf("features of an unknown handler: %+v", f)
	}
}

// TestShuttingDown checks that the node is not ready while its machine is shut down.
func TestShuttingDown(t *testing.T) {
	down := true
	r := New(Config{Name: "n", Client: clienttest.Start(t), Machine: machine(t), Health: healthy("", ""), ShuttingDown: func() bool { return down }})
	for _, want := range []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue} {
		for _, c := range r.status(&corev1.Node{}, time.Now()).Conditions {
			if c.Type == corev1.NodeReady && (c.Status != want || down && c.Message != "node is shutting down") {
				t.Errorf("shutting down %v: %+v", down, c)
			}
		}
		down = false
	}
}

// TestHealth checks that an unreachable runtime is reported down quickly, and that one that
// has just stopped answering is given time.
func TestHealth(t *testing.T) {
	runtime, err := cri.Dial("unix:///no/such/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer runtime.Close()
	h := NewHealth(runtime, func() {})
	ctx := context.Background()
	h.ask(ctx)
	if h.Up() {
		t.Error("a runtime that does not exist is reported up")
	}
	h.mu.Lock()
	h.take(&runtimev1.StatusResponse{Status: &runtimev1.RuntimeStatus{Conditions: []*runtimev1.RuntimeCondition{{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Reason: "NoCNI", Message: "no configuration"}, {Type: "Deprecations", Status: false}}}}, time.Now().Add(time.Minute)) // so that lastOK is recent for the rest of the test
	h.mu.Unlock()
	if !h.Up() || h.NetworkReady() {
		t.Errorf("up %v, network %v", h.Up(), h.NetworkReady())
	}
	h.ask(ctx)
	if !h.Up() {
		t.Error("a single refused connection is reported as down")
	}
	h.mu.Lock()
	h.lastOK = time.Now().Add(-2 * deadPatience)
	h.mu.Unlock()
	h.ask(ctx)
	if problem, _ := h.state(); h.Up() || problem == "" {
		t.Errorf("unreachable for longer than deadPatience, but up: %q", problem)
	}
}

func TestHeartbeat(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := clienttest.Start(t)
	node := &corev1.Node{}
	node.Name, node.UID = "node-a", "uid"
	h := NewHeartbeat(c, "node-a", func() *corev1.Node { return node }, 20*time.Millisecond)
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	leases := client.For[*coordinationv1.Lease](c)
	get := func() *coordinationv1.Lease {
		l, err := leases.Get(context.Background(), corev1.NamespaceNodeLease, "node-a")
		if err != nil {
			return &coordinationv1.Lease{}
		}
		return l
	}
	until(t, "the Lease exists", func() bool { return get().Spec.RenewTime != nil })
	first := get()
	if *first.Spec.HolderIdentity != "node-a" || len(first.OwnerReferences) != 1 || first.OwnerReferences[0].UID != "uid" {
		t.Errorf("lease: %+v", first)
	}
	until(t, "the Lease is renewed", func() bool {
		l := get()
		return l.Spec.RenewTime != nil && l.Spec.RenewTime.After(first.Spec.RenewTime.Time)
	})
	if err := leases.Delete(context.Background(), corev1.NamespaceNodeLease, "node-a"); err != nil {
		t.Fatal(err)
	}
	until(t, "the Lease is created again", func() bool { return get().Spec.RenewTime != nil })
	h.SetInterval(0)
	h.SetInterval(time.Hour)
	if h.interval.Load() != int64(20*time.Millisecond) {
		t.Error("an interval out of bounds was accepted")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestProvidedIPIsUpdated checks that a node with a changed address updates its annotation,
// and only with an external cloud.
func TestProvidedIPIsUpdated(t *testing.T) {
	for _, external := range []bool{true, false} {
		r := &Registration{cfg: Config{Name: "node-0", Address: "10.0.0.3", External: external, Machine: &Machine{}}}
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-0", Labels: r.labels(), Annotations: map[string]string{providedIP: "10.0.0.2"}}}
		got := r.labelled(n)
		if external != (got != nil && got.Annotations[providedIP] == "10.0.0.3") {
			t.Errorf("external %t: %v", external, got)
		}
		if got != nil && r.labelled(got) != nil {
			t.Error("the annotation is written although it is up to date")
		}
	}
}

// TestHeartbeatNamesFencedPods runs a heartbeat with a fencer. The Lease names the pods
// that the fencer admits, and is renewed further on.
func TestHeartbeatNamesFencedPods(t *testing.T) {
	c := clienttest.Start(t)
	f, err := fencing.New(fencing.Config{Dir: t.TempDir(), Kill: func(types.UID) (int, error) { return 0, nil }})
	if err != nil {
		t.Fatal(err)
	}
	h := NewHeartbeat(c, "node-a", func() *corev1.Node { return nil }, 20*time.Millisecond)
	h.SetFence(f)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Run(ctx) }()
	defer func() { cancel(); <-done }()
	leases := client.For[*coordinationv1.Lease](c)
	eventually := func(what string, cond func(*coordinationv1.Lease) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			l, err := leases.Get(t.Context(), corev1.NamespaceNodeLease, "node-a")
			if err == nil && cond(l) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("never: %s; lease %+v, error %v", what, l, err)
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "db", Annotations: map[string]string{fence.Annotation: fence.ByLease}}}
	eventually("the pod is admitted", func(*coordinationv1.Lease) bool { return f.Enter(p) == nil })
	var version string
	eventually("the lease names it", func(l *coordinationv1.Lease) bool {
		version = l.ResourceVersion
		return l.Annotations[fence.PodsAnnotation] == "db" && l.Annotations[fence.AfterAnnotation] == "12s"
	})
	eventually("the lease is renewed further on", func(l *coordinationv1.Lease) bool { return l.ResourceVersion != version })
	f.Leave("db")
	eventually("the lease promises nothing", func(l *coordinationv1.Lease) bool { return len(l.Annotations) == 0 })
}

// TestDevices checks that what device plug-ins offer replaces what the node reported before,
// and that a device that is sick counts in the capacity only.
func TestDevices(t *testing.T) {
	quantities := func(n int64) corev1.ResourceList {
		return corev1.ResourceList{"example.com/gpu": *resource.NewQuantity(n, resource.DecimalSI)}
	}
	r := New(Config{Name: "n", Client: clienttest.Start(t), Machine: machine(t), Health: healthy("", ""), Devices: func() (capacity, allocatable corev1.ResourceList) {
		return quantities(3), quantities(2)
	}})
	reported := corev1.NodeStatus{Capacity: quantities(9)}
	reported.Capacity["example.com/dongle"] = resource.MustParse("4")
	s := r.status(&corev1.Node{Status: reported}, time.Now())
	for name, want := range map[corev1.ResourceName][2]int64{"example.com/gpu": {3, 2}, "example.com/dongle": {4, 4}} {
		c, a := s.Capacity[name], s.Allocatable[name]
		if c.Value() != want[0] || a.Value() != want[1] {
			t.Errorf("%s: capacity %v, allocatable %v, want %v", name, c.Value(), a.Value(), want)
		}
	}
}

// A registration of which a part that it reads hangs is not healthy.
func TestCheckNoticesAHang(t *testing.T) {
	var hang atomic.Bool
	release := make(chan struct{})
	r := begin(t, Config{Name: "n", Client: clienttest.Start(t), Machine: machine(t), Health: healthy("", ""), Pressure: func() []corev1.NodeConditionType {
		if hang.Load() {
			<-release
		}
		return nil
	}})
	r.progress.Patience = time.Millisecond
	until(t, "it is healthy", func() bool { return r.Check(t.Context()) == nil })
	hang.Store(true)
	r.Poke()
	until(t, "it is not healthy", func() bool { return r.Check(t.Context()) != nil })
	hang.Store(false)
	close(release)
	until(t, "it is healthy again", func() bool { return r.Check(t.Context()) == nil })
}
