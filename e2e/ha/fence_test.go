package ha_test

import (
	"context"
	"flag"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

var (
	takeovers = flag.Int("takeovers", 50, "how many leaders are replaced while what they sent is held up")
	pauses    = flag.Int("pauses", 3, "how many leading controller-managers are stopped for longer than their lease")
)

// sent counts the messages that a client has handed to its transport.
type sent struct {
	mu sync.Mutex
	n  int
}

func (s *sent) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (s *sent) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *sent) HandleConn(context.Context, stats.ConnStats)                       {}
func (s *sent) HandleRPC(_ context.Context, e stats.RPCStats) {
	if _, ok := e.(*stats.OutPayload); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.n++
	}
}

func (s *sent) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// candidate is a client that takes part in the test's own election.
type candidate struct {
	*client.Client
	name string
	ctx  context.Context // carries its fence while it leads
}

// lead makes a candidate the holder of the Lease, and takes its fence if fenced.
func (cd *candidate) lead(fenced bool) error {
	leases := client.For[*coordinationv1.Lease](cd.Client)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cd.ctx = context.Background()
	const name = "fence-test"
	l, err := leases.Get(ctx, "default", name)
	if apierrors.IsNotFound(err) {
		l, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
	}
	if err != nil {
		return err
	}
	transitions := int32(1)
	if l.Spec.LeaseTransitions != nil {
		transitions += *l.Spec.LeaseTransitions
	}
	l.Spec.HolderIdentity, l.Spec.LeaseTransitions = &cd.name, &transitions
	if l, err = leases.Update(ctx, l); err != nil || !fenced {
		return err
	}
	token, err := client.TakeFence(ctx, cd.Client, l)
	if err != nil {
		return err
	}
	cd.ctx = client.WithFence(context.Background(), &client.Fence{Token: token})
	return nil
}

// writes are one call of each kind of write that a leader could have sent, to objects of
// the round, in both stores.
func (cd *candidate) writes(round string) map[string]func(ctx context.Context) error {
	maps, events := client.For[*corev1.ConfigMap](cd.Client), client.For[*corev1.Event](cd.Client)
	object := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: round + name}, Data: map[string]string{"by": cd.name}}
	}
	event := func(name string) *corev1.Event {
		return &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: "default", Name: round + name},
			InvolvedObject: corev1.ObjectReference{Kind: "ConfigMap", Namespace: "default", Name: round},
		}
	}
	patch := []byte(`{"data":{"by":"` + cd.name + `"}}`)
	return map[string]func(ctx context.Context) error{
		"create": func(ctx context.Context) error { _, err := maps.Create(ctx, object("created")); return err },
		"update": func(ctx context.Context) error { _, err := maps.Update(ctx, object("updated")); return err },
		"patch": func(ctx context.Context) error {
			_, err := maps.Patch(ctx, "default", round+"patched", types.MergePatchType, patch)
			return err
		},
		"apply": func(ctx context.Context) error {
			_, err := maps.Apply(ctx, object("applied"), cd.name, client.Force())
			return err
		},
		"delete": func(ctx context.Context) error { return maps.Delete(ctx, "default", round+"deleted") },
		"event":  func(ctx context.Context) error { _, err := events.Create(ctx, event("event")); return err },
		"commit": func(ctx context.Context) error {
			results, err := cd.Commit(ctx, client.CreateWrite(object("batch")), client.CreateWrite(event("batch")))
			for _, r := range results {
				if err == nil {
					err = r.Err
				}
				if err != nil && !client.IsFenced(r.Err) {
					return fmt.Errorf("the write of a batch was refused for another reason than its fence: %w", r.Err)
				}
			}
			return err
		},
	}
}

// existing are the objects that the writes of a round change.
var existing = []string{"updated", "patched", "applied", "deleted"}

// TestLateWritesOfAnOldLeader replaces a leader while what it sent is held up, and then
// lets it arrive: all of it is refused, in both stores, at each apiserver. Without a fence
// all of it is accepted, which shows that nothing else would refuse it.
func TestLateWritesOfAnOldLeader(t *testing.T) {
	c := start(t)
	w := newWire(t)
	var out sent
	endpoints := c.Endpoints(t)
	next := &candidate{Client: c.Dial(t, endpoints), name: "new"}
	maps := client.For[*corev1.ConfigMap](next.Client)
	for i := range *takeovers {
		fenced := i%5 != 4 // every fifth round shows what happens without one
		// In each round the old leader uses another apiserver.
		old := &candidate{name: "old", Client: c.Dial(t, endpoints[i%len(endpoints):i%len(endpoints)+1],
			grpc.WithContextDialer(w.dial), grpc.WithStatsHandler(&out))}
		round := "round-" + strconv.Itoa(i) + "-"
		for _, name := range existing {
			if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: round + name}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := old.lead(fenced); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if _, err := client.For[*corev1.ConfigMap](old.Client).Create(old.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: round + "in-time"}}); err != nil {
			t.Fatalf("round %d: a leader's write: %v", i, err)
		}

		w.hold()
		writes, before := old.writes(round), out.count()
		results := make(map[string]error, len(writes))
		var mu sync.Mutex
		var wg sync.WaitGroup
		for what, write := range writes {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(old.ctx, 2*time.Minute)
				defer cancel()
				err := write(ctx)
				mu.Lock()
				defer mu.Unlock()
				results[what] = err
			})
		}
		wait.For(t, time.Minute, "the old leader's writes are sent and held up", func(context.Context) error {
			if sent := out.count() - before; sent < len(writes) || w.waiting() == 0 {
				return fmt.Errorf("%d of %d are sent, %d bytes are held up", sent, len(writes), w.waiting())
			}
			return nil
		})
		if err := next.lead(fenced); err != nil {
			t.Fatalf("round %d: the next leader: %v", i, err)
		}
		w.release()
		wg.Wait()
		for what, err := range results {
			if fenced && !client.IsFenced(err) {
				t.Errorf("round %d: %s of the old leader arrived late and was not refused for its fence: %v", i, what, err)
			}
			if !fenced && err != nil {
				t.Errorf("round %d: without a fence, %s: %v", i, what, err)
			}
		}
		untouched(t, maps, round, fenced)
		for what, write := range next.writes(round) {
			if !fenced {
				break
			}
			if err := write(next.ctx); err != nil {
				t.Errorf("round %d: %s of the new leader: %v", i, what, err)
			}
		}
		_ = old.Close()
		if t.Failed() {
			return
		}
	}
}

// untouched checks that the objects of a round are as before if the old leader had a
// fence, and changed if it had none.
func untouched(t *testing.T, maps client.Resource[*corev1.ConfigMap], round string, fenced bool) {
	t.Helper()
	for _, name := range append([]string{"created", "batch"}, existing...) {
		got, err := maps.Get(context.Background(), "default", round+name)
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		there := err == nil
		was := name != "created" && name != "batch"
		if changed := there != was || there && got.Data["by"] != ""; changed == fenced {
			t.Errorf("%s%s changed: %t; the leader had a fence: %t", round, name, changed, fenced)
		}
	}
}

// TestPausedLeader stops the leading controller-manager under load for longer than its
// lease. Events name their writer: after the first event of the next leader there must be
// none of the stopped one, whatever that one does when it goes on.
func TestPausedLeader(t *testing.T) {
	c := start(t)
	api := c.Client(t)
	deployments := client.For[*appsv1.Deployment](api)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	// The instances in the order in which their events were accepted.
	var mu sync.Mutex
	var writers []string
	events := client.NewCache(api, client.CacheOptions[*corev1.Event]{Namespace: "default"})
	events.Subscribe(func(ev client.Event[*corev1.Event]) {
		if by := ev.Object.ReportingInstance; ev.Type != client.Deleted {
			mu.Lock()
			defer mu.Unlock()
			writers = append(writers, by)
		}
	})
	wg.Go(func() { _ = events.Run(ctx) })
	<-events.Synced()
	from := 0 // where the round begins
	count := func(by string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, w := range writers[from:] {
			if w == by {
				n++
			}
		}
		return n
	}

	wg.Go(func() { // load, so that a leader always has work
		labels := map[string]string{"app": "load"}
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("load-%d", i)
			replicas := int32(3)
			_, _ = deployments.Create(ctx, &appsv1.Deployment{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
				Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "any"}}},
				}},
			})
			if i >= 20 {
				_ = deployments.Delete(ctx, "default", fmt.Sprintf("load-%d", i-20))
			}
			wait.Pause(ctx, 20*time.Millisecond)
		}
	})
	for i := range *pauses {
		settled(t, c, api, "controller-manager")
		mu.Lock()
		from = len(writers)
		mu.Unlock()
		leader, err := leading(ctx, c, api, "controller-manager")
		if err != nil {
			t.Fatal(err)
		}
		lease, err := client.For[*coordinationv1.Lease](api).Get(ctx, metav1.NamespaceSystem, "controller-manager")
		if err != nil {
			t.Fatal(err)
		}
		old := *lease.Spec.HolderIdentity
		wait.For(t, time.Minute, "the leader writes events", reaches(func() int { return count(old) }, 21))
		resume := c.Stop(t, leader)
		mu.Lock() // every event of earlier leaders came before those of this one
		from = len(writers)
		mu.Unlock()
		// The load goes on, so that the stopped one finds work and packets.
		var successor string
		wait.For(t, time.Minute, "the next one leads and writes", func(ctx context.Context) error {
			l, err := client.For[*coordinationv1.Lease](api).Get(ctx, metav1.NamespaceSystem, "controller-manager")
			if err != nil {
				return err
			}
			if successor = *l.Spec.HolderIdentity; successor == "" || successor == old || count(successor) == 0 {
				return fmt.Errorf("%q leads, with %d events", successor, count(successor))
			}
			return nil
		})
		resume()
		wait.For(t, time.Minute, "the next one goes on writing", reaches(func() int { return count(successor) }, count(successor)+101))
		mu.Lock()
		late, seen := 0, false
		for _, w := range writers[from:] {
			if w == successor {
				seen = true
			}
			if seen && w == old {
				late++
			}
		}
		mu.Unlock()
		t.Logf("round %d: %s was stopped, %s took over; %d late events", i, leader.Name, successor, late)
		if late > 0 {
			t.Errorf("round %d: %d events of %s were accepted after the first of %s", i, late, old, successor)
		}
	}
}
