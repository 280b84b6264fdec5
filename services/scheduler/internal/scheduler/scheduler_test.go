package scheduler

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/event"
	"keelson.dev/services/scheduler/internal/decide"
	"keelson.dev/services/scheduler/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fixture struct {
	*testing.T
	ctx context.Context
	srv *clienttest.Server
	c   *client.Client
	s   *Scheduler
}

// start runs a scheduler against a server in memory.
func start(t *testing.T) *fixture {
	t.Helper()
	srv, c := clienttest.StartServer(t)
	f := &fixture{T: t, srv: srv, c: c}
	var cancel context.CancelFunc
	f.ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	caches := NewCaches(c)
	events := event.NewRecorder(c, "default-scheduler", "test")
	f.s = New(Config{Client: c, Caches: caches, Events: events, Name: "default-scheduler"})
	done := make(chan error, 20)
	n := 0
	run := func(f func(context.Context) error, ctx context.Context) {
		n++
		go func() { done <- f(ctx) }()
	}
	run(events.Run, f.ctx)
	for _, cache := range caches.All() {
		run(cache.Run, f.ctx)
	}
	run(f.s.Lead, f.ctx)
	t.Cleanup(func() {
		cancel()
		for range n {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return f
}

func create[T client.Object](f *fixture, obj T) T {
	f.Helper()
	out, err := client.For[T](f.c).Create(f.ctx, obj)
	if err != nil {
		f.Fatalf("create %s: %v", obj.GetName(), err)
	}
	return out
}

func (f *fixture) pod(name string) *corev1.Pod {
	f.Helper()
	p, err := client.For[*corev1.Pod](f.c).Get(f.ctx, "default", name)
	if err != nil {
		f.Fatal(err)
	}
	return p
}

func (f *fixture) until(what string, cond func() bool) {
	f.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-f.ctx.Done():
			f.Fatal("waited in vain until " + what)
		}
	}
}

func (f *fixture) bound(name string) string {
	f.Helper()
	f.until("pod "+name+" has a node", func() bool { return f.pod(name).Spec.NodeName != "" })
	return f.pod(name).Spec.NodeName
}

// refused waits for the message in the pod's condition; what it says of preemption counts
// only if message does too.
func (f *fixture) refused(name, message string) {
	f.Helper()
	var last string
	f.until("pod "+name+" is refused with "+message, func() bool {
		for _, c := range f.pod(name).Status.Conditions {
			if c.Type == corev1.PodScheduled {
				last = string(c.Status) + " " + c.Reason + ": " + c.Message
				if !strings.Contains(message, " preemption: ") {
					last, _, _ = strings.Cut(last, " preemption: ")
				}
				return last == "False Unschedulable: "+message
			}
		}
		return false
	})
}

func (f *fixture) event(reason, message string) {
	f.Helper()
	f.until("event "+reason+" "+message, func() bool {
		events, _, err := client.For[*corev1.Event](f.c).List(f.ctx, client.ListOptions{})
		if err != nil {
			f.Fatal(err)
		}
		for _, ev := range events {
			if ev.Reason == reason && ev.Message == message && ev.Source.Component == "default-scheduler" {
				return true
			}
		}
		return false
	})
}

func node(name, cpu string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			"cpu": resource.MustParse(cpu), "memory": resource.MustParse("8Gi"), "pods": resource.MustParse("110"),
		}},
	}
}

func pending(name, cpu string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			SchedulerName: "default-scheduler",
			Containers: []corev1.Container{{Name: "c", Image: "pause", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)},
			}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
}

func TestPodsAreBoundAndSpread(t *testing.T) {
	f := start(t)
	for i := range 3 {
		create(f, node(fmt.Sprint("n", i), "4"))
	}
	// Nodes and pods come by watches of their own: the last node could come after
	// most pods have theirs.
	f.until("the nodes are known", func() bool {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		return f.s.env.Node("n0") != nil && f.s.env.Node("n1") != nil && f.s.env.Node("n2") != nil
	})
	for i := range 30 {
		create(f, pending(fmt.Sprint("p", i), "100m"))
	}
	on := map[string]int{}
	for i := range 30 {
		on[f.bound(fmt.Sprint("p", i))]++
	}
	for i := range 3 {
		if n := on[fmt.Sprint("n", i)]; n != 10 {
			t.Errorf("pods by node: %v", on)
		}
	}
	f.event("Scheduled", "Successfully assigned default/p0 to "+f.bound("p0"))
	f.until("nothing is under way", func() bool { return len(f.s.underWay()) == 0 })
}

func TestARefusedPodSaysWhyAndIsWokenByWhatHelps(t *testing.T) {
	f := start(t)
	create(f, pending("p", "2"))
	f.refused("p", "no nodes available to schedule pods")
	create(f, node("small", "1"))
	f.refused("p", "0/1 nodes are available: 1 Insufficient cpu.")
	tainted := node("tainted", "4")
	tainted.Spec.Taints = []corev1.Taint{{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}}
	tainted = create(f, tainted)
	cordoned := node("cordoned", "4")
	cordoned.Spec.Unschedulable = true
	create(f, cordoned)
	// The node that came does not help: it is the taint's removal that does.
	tainted.Spec.Taints = nil
	if _, err := client.For[*corev1.Node](f.c).Update(f.ctx, tainted); err != nil {
		t.Fatal(err)
	}
	if got := f.bound("p"); got != "tainted" {
		t.Fatalf("on %s", got)
	}
	f.event("FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
}

func TestADeletedPodMakesRoom(t *testing.T) {
	f := start(t)
	create(f, node("n", "1"))
	create(f, pending("first", "800m"))
	f.bound("first")
	create(f, pending("second", "800m"))
	f.refused("second", "0/1 nodes are available: 1 Insufficient cpu.")
	if err := client.For[*corev1.Pod](f.c).Delete(f.ctx, "default", "first", client.Grace(0)); err != nil {
		t.Fatal(err)
	}
	f.bound("second")
}

func TestGatedForeignAndDeletedPodsAreLeftAlone(t *testing.T) {
	f := start(t)
	gated := pending("gated", "100m")
	gated.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
	gated = create(f, gated)
	foreign := pending("foreign", "100m")
	foreign.Spec.SchedulerName = "another"
	create(f, foreign)
	create(f, node("n", "4"))
	create(f, pending("usual", "100m"))
	f.bound("usual")
	for _, name := range []string{"gated", "foreign"} {
		if p := f.pod(name); p.Spec.NodeName != "" || len(p.Status.Conditions) > 0 {
			t.Errorf("%s: %s %v", name, p.Spec.NodeName, p.Status.Conditions)
		}
	}
	gated.Spec.SchedulingGates = nil
	if _, err := client.For[*corev1.Pod](f.c).Update(f.ctx, gated); err != nil {
		t.Fatal(err)
	}
	f.bound("gated")
}

func TestAHigherPriorityGoesFirst(t *testing.T) {
	f := start(t)
	for i, name := range []string{"low", "high", "middle"} {
		p := pending(name, "800m")
		priority := []int32{1, 100, 10}[i]
		p.Spec.Priority = &priority
		create(f, p)
	}
	f.until("all wait", func() bool {
		f.s.mu.Lock()
		defer f.s.mu.Unlock()
		for _, name := range []string{"low", "high", "middle"} {
			if it, ok := f.s.queue.Get(state.Key{Namespace: "default", Name: name}); !ok || it.Message == "" {
				return false
			}
		}
		return true
	})
	create(f, node("n", "1"))
	f.bound("high")
	for _, name := range []string{"low", "middle"} {
		f.refused(name, "0/1 nodes are available: 1 Insufficient cpu.")
	}
}

func TestManyPodsFillTheNodesExactly(t *testing.T) {
	f := start(t)
	for i := range 10 {
		create(f, node(fmt.Sprintf("n%d", i), "1"))
	}
	var writes []client.Write
	for i := range 300 {
		writes = append(writes, client.CreateWrite(pending(fmt.Sprintf("p%03d", i), "50m")))
	}
	if _, err := f.c.CommitQuietly(f.ctx, writes...); err != nil {
		t.Fatal(err)
	}
	pods := client.For[*corev1.Pod](f.c)
	f.until("200 are bound and the rest refused", func() bool {
		list, _, err := pods.List(f.ctx, client.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		on, refused := map[string]int{}, 0
		for _, p := range list {
			if p.Spec.NodeName != "" {
				on[p.Spec.NodeName]++
			} else if len(p.Status.Conditions) > 0 && strings.Contains(p.Status.Conditions[0].Message, "10 Insufficient cpu") {
				refused++
			}
		}
		for name, n := range on {
			if n > 20 {
				t.Fatalf("%d pods on %s", n, name)
			}
		}
		return len(on) == 10 && refused == 100
	})
}

func TestAClaimGetsItsVolumeBeforeThePodIsBound(t *testing.T) {
	f := start(t)
	create(f, node("n1", "4"))
	waits, class := storagev1.VolumeBindingWaitForFirstConsumer, "local"
	create(f, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: "example.com/local", VolumeBindingMode: &waits})
	p := pending("db", "100m")
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	create(f, p)
	f.refused("db", `0/1 nodes are available: persistentvolumeclaim "data" not found.`)
	create(f, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data"},
		Spec:       corev1.PersistentVolumeClaimSpec{StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}},
	})
	claims := client.For[*corev1.PersistentVolumeClaim](f.c)
	choice := func() *corev1.PersistentVolumeClaim {
		var c *corev1.PersistentVolumeClaim
		f.until("the claim has a node", func() bool {
			var err error
			if c, err = claims.Get(f.ctx, "default", "data"); err != nil {
				t.Fatal(err)
			}
			return c.Annotations["volume.kubernetes.io/selected-node"] == "n1"
		})
		return c
	}
	// The first try to make the volume fails: the provisioner says so by taking the
	// node away, and the scheduler decides anew.
	c := choice()
	delete(c.Annotations, "volume.kubernetes.io/selected-node")
	if _, err := claims.Update(f.ctx, c); err != nil {
		t.Fatal(err)
	}
	c = choice()
	if node := f.pod("db").Spec.NodeName; node != "" {
		t.Fatalf("bound to %s before its claim", node)
	}
	create(f, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: corev1.PersistentVolumeSpec{StorageClassName: class}})
	c.Spec.VolumeName = "v"
	c.Annotations["pv.kubernetes.io/bind-completed"] = "yes"
	if _, err := claims.Update(f.ctx, c); err != nil {
		t.Fatal(err)
	}
	if got := f.bound("db"); got != "n1" {
		t.Fatalf("on %s", got)
	}
}

// Of refusals that change and change back quickly, the last is what the status
// says: the pod at hand may be older than what was reported since.
func TestTheLastRefusalIsReported(t *testing.T) {
	c := clienttest.Start(t)
	s := New(Config{Client: c, Caches: NewCaches(c), Events: event.NewRecorder(c, "default-scheduler", "test"), Name: "default-scheduler"})
	p := pending("p", "1")
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "one"}}
	key := state.Key{Namespace: "default", Name: "p"}
	s.queue.Add(state.NewPod(p), "", true)
	refuse := func(message string) {
		t.Helper()
		s.queue.Wake(func(*state.Pod, []string) bool { return true })
		it := s.queue.Pop()
		if it == nil {
			t.Fatal("the pod is not due")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refuse(it, &decide.Verdict{Message: message}, time.Now())
	}
	refuse("one")
	if r, ok := s.reports[key]; ok {
		t.Fatalf("what the status says already is to be written: %s", r.condition.Message)
	}
	for _, message := range []string{"two", "one"} {
		refuse(message)
		if got := s.reports[key].condition.Message; got != message {
			t.Fatalf("%q is to be written, want %q", got, message)
		}
	}
}

func TestABindingThatFailsIsTakenBackAndTriedAgain(t *testing.T) {
	f := start(t)
	var failures atomic.Int32
	f.srv.Fail(func(_ string, ref *resourcev1.Ref) error {
		if ref.GetSubresource() == "binding" && failures.Add(1) <= 3 {
			return status.Error(codes.Unavailable, "out of order")
		}
		return nil
	})
	create(f, node("n", "1"))
	for i := range 3 { // one needs the place that another's failure must free
		create(f, pending(fmt.Sprint("p", i), "300m"))
	}
	for i := range 3 {
		f.bound(fmt.Sprint("p", i))
	}
	f.until("nothing is under way", func() bool { return len(f.s.underWay()) == 0 })
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if n := f.s.env.Node("n"); len(n.Pods) != 3 || n.Requested.CPU != 900 {
		t.Fatalf("%d pods request %d", len(n.Pods), n.Requested.CPU)
	}
}

// BenchmarkSchedule measures the whole scheduler against a server in memory:
// pods that wait already, until all are bound.
func BenchmarkSchedule(b *testing.B) {
	const nodes, pods = 1000, 5000
	for b.Loop() {
		b.StopTimer()
		_, c := clienttest.StartServer(b)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		var writes []client.Write
		for i := range nodes {
			writes = append(writes, client.CreateWrite(node(fmt.Sprintf("n%04d", i), "4")))
		}
		for i := range pods {
			writes = append(writes, client.CreateWrite(pending(fmt.Sprintf("p%05d", i), "100m")))
		}
		if _, err := c.CommitQuietly(ctx, writes...); err != nil {
			b.Fatal(err)
		}
		caches := NewCaches(c)
		s := New(Config{Client: c, Caches: caches, Events: event.NewRecorder(c, "default-scheduler", "bench"), Name: "default-scheduler"})
		var wg sync.WaitGroup
		for _, cache := range caches.All() {
			wg.Go(func() { _ = cache.Run(ctx) })
		}
		if err := caches.Synced(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		wg.Go(func() { _ = s.Lead(ctx) })
		tick := time.NewTicker(time.Millisecond)
		for done := false; !done; {
			<-tick.C
			s.mu.Lock()
			done = s.env.PodCount() == pods && len(s.flights) == 0
			s.mu.Unlock()
		}
		tick.Stop()
		b.StopTimer()
		cancel()
		wg.Wait()
		b.StartTimer()
	}
	b.ReportMetric(pods*float64(b.N)/b.Elapsed().Seconds(), "pods/s")
}

// A scheduler whose lock is never released is not healthy, so that a watchdog restarts it.
func TestCheckNoticesAHang(t *testing.T) {
	f := start(t)
	f.s.progress.Patience = time.Millisecond
	f.until("it is healthy", func() bool { return f.s.Check(f.ctx) == nil })
	f.s.mu.Lock()
	f.s.poke()
	f.until("it is not healthy", func() bool { return f.s.Check(f.ctx) != nil })
	f.s.mu.Unlock()
	f.until("it is healthy again", func() bool { return f.s.Check(f.ctx) == nil })
}
