package queue

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/scheduler/internal/state"
)

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }

func pod(name string, priority int32, gates ...string) *state.Pod {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
	o.Spec.Priority = &priority
	for _, g := range gates {
		o.Spec.SchedulingGates = append(o.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: g})
	}
	return state.NewPod(o)
}

func key(name string) state.Key { return state.Key{Namespace: "default", Name: name} }

func newQueue() (*Queue, *clock) {
	c := &clock{at: time.Unix(1000, 0)}
	return New(c.now), c
}

func wantPop(t *testing.T, q *Queue, names ...string) []*Item {
	t.Helper()
	var items []*Item
	for _, name := range names {
		it := q.Pop()
		got := ""
		if it != nil {
			got = it.Pod.Name
		}
		if got != name {
			t.Fatalf("popped %q, want %q", got, name)
		}
		items = append(items, it)
	}
	return items
}

func wantLen(t *testing.T, q *Queue, want string) {
	t.Helper()
	a, b, u, g := q.Len()
	if got := fmt.Sprintf("active %d backoff %d aside %d gated %d", a, b, u, g); got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
}

var (
	always = func(*state.Pod, []string) bool { return true }
	never  = func(*state.Pod, []string) bool { return false }
)

func TestOrder(t *testing.T) {
	q, c := newQueue()
	q.Add(pod("a", 0), "", true)
	c.pass(time.Second)
	q.Add(pod("b", 5), "", true)
	q.Add(pod("c", 0), "", true)
	q.Add(pod("d", 5), "", true)
	wantPop(t, q, "b", "d", "a", "c")
	if q.Pop() != nil {
		t.Fatal("popped from an empty queue")
	}
}

func TestARefusedPodWaitsUntilSomethingHelps(t *testing.T) {
	q, c := newQueue()
	q.Add(pod("a", 0), "tp", true)
	it := wantPop(t, q, "a")[0]
	q.Refused(it, "class", "why", []string{"Fit"})
	wantLen(t, q, "active 0 backoff 0 aside 1 gated 0")
	if _, ok := q.Next(); ok || q.Pop() != nil {
		t.Fatal("a refused pod is due")
	}
	if q.Wake(never) != 0 {
		t.Fatal("woken in vain")
	}
	if n := q.Wake(func(p *state.Pod, plugins []string) bool { return p.Name == "a" && plugins[0] == "Fit" }); n != 1 {
		t.Fatalf("woke %d", n)
	}
	wantLen(t, q, "active 0 backoff 1 aside 0 gated 0")
	// No other pod waits, so it need not.
	it = wantPop(t, q, "a")[0]
	if it.Attempts != 2 || it.Message != "why" || it.Traceparent != "tp" {
		t.Fatalf("%+v", it)
	}
	q.Refused(it, "class", "why", []string{"Fit"})
	q.Wake(always)
	// Another pod does wait: it stays back, and later comes after its priority.
	q.Add(pod("b", 0), "", true)
	wantPop(t, q, "b")
	c.pass(3 * time.Second)
	q.Add(pod("c", 1), "", true)
	wantPop(t, q, "c", "a")
}

func TestAFailedPodWaitsLongerEachTime(t *testing.T) {
	q, c := newQueue()
	q.Add(pod("a", 0), "", true)
	for _, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		it := wantPop(t, q, "a")[0]
		q.Retry(it)
		at, ok := q.Next()
		if wait := at.Sub(c.at); !ok || wait != want*time.Second {
			t.Fatalf("waits %v, want %d s", wait, want)
		}
		if q.Pop() != nil {
			t.Fatal("popped before its time")
		}
		c.pass(want * time.Second)
	}
}

func TestPodsAlikeAreAskedForOnce(t *testing.T) {
	q, _ := newQueue()
	for i := range 10 {
		q.Add(pod(fmt.Sprint("p", i), 0), "", true)
	}
	for i := range 10 {
		it := q.Pop()
		q.Refused(it, fmt.Sprint("class", i%2), "why", []string{"Fit"})
	}
	asked := 0
	if n := q.Wake(func(*state.Pod, []string) bool { asked++; return asked == 1 }); asked != 2 || n != 5 {
		t.Fatalf("asked %d times, woke %d", asked, n)
	}
}

func TestChangesOfAPod(t *testing.T) {
	q, _ := newQueue()
	q.Add(pod("a", 0), "", true)
	q.Refused(wantPop(t, q, "a")[0], "", "why", nil)
	q.Add(pod("a", 0), "", false) // its status, say
	wantLen(t, q, "active 0 backoff 0 aside 1 gated 0")
	q.Add(pod("a", 0), "", true)
	wantLen(t, q, "active 0 backoff 1 aside 0 gated 0")
	q.Delete(key("a"))
	q.Delete(key("none"))
	wantLen(t, q, "active 0 backoff 0 aside 0 gated 0")
	if q.Pop() != nil {
		t.Fatal("popped a deleted pod")
	}
	q.Add(pod("a", 0), "", true)
	again := pod("a", 0)
	again.UID = "another"
	q.Add(again, "new", false)
	if it := wantPop(t, q, "a")[0]; it.Pod.UID != "another" || it.Traceparent != "new" || it.Attempts != 1 {
		t.Fatalf("%+v", it)
	}
}

func TestGates(t *testing.T) {
	q, _ := newQueue()
	q.Add(pod("a", 0, "wait"), "", true)
	wantLen(t, q, "active 0 backoff 0 aside 0 gated 1")
	if q.Wake(always) != 0 || q.Pop() != nil {
		t.Fatal("a gated pod is due")
	}
	q.Add(pod("a", 0), "", true)
	wantPop(t, q, "a")
}

func TestWhatIsAsideForLongIsTriedAgain(t *testing.T) {
	q, c := newQueue()
	q.Add(pod("a", 0), "", true)
	q.Refused(wantPop(t, q, "a")[0], "", "why", nil)
	q.Flush()
	wantLen(t, q, "active 0 backoff 0 aside 1 gated 0")
	c.pass(lastResort + 2*time.Second)
	q.Flush()
	wantPop(t, q, "a")
}

// TestNoPodIsLostOrDoubled runs random operations and counts.
func TestNoPodIsLostOrDoubled(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 3))
		q, c := newQueue()
		in, held := map[string]bool{}, map[string]*Item{}
		for range 500 {
			name := fmt.Sprint("p", rng.IntN(12))
			switch rng.IntN(9) {
			case 0, 1, 2:
				if held[name] == nil {
					gates := []string{"g"}[:rng.IntN(5)/4]
					q.Add(pod(name, int32(rng.IntN(3)), gates...), "", rng.IntN(2) == 0 || !in[name])
					in[name] = true
				}
			case 3:
				q.Delete(key(name))
				delete(in, name)
			case 4, 5:
				if it := q.Pop(); it != nil {
					if !in[it.Pod.Name] || held[it.Pod.Name] != nil {
						t.Fatalf("seed %d: popped %s, which was not there", seed, it.Pod.Name)
					}
					delete(in, it.Pod.Name)
					held[it.Pod.Name] = it
				}
			case 6:
				for name, it := range held {
					delete(held, name)
					in[name] = true
					if rng.IntN(2) == 0 {
						q.Retry(it)
					} else {
						q.Refused(it, fmt.Sprint(rng.IntN(2)), "why", []string{"Fit"})
					}
					break
				}
			case 7:
				q.Wake(func(*state.Pod, []string) bool { return rng.IntN(2) == 0 })
			case 8:
				c.pass(time.Duration(rng.IntN(4)) * time.Second)
				q.Flush()
			}
			a, b, u, g := q.Len()
			grouped := 0
			for _, group := range q.asides {
				grouped += len(group.items)
			}
			if a+b+u+g != len(in) || q.active.Len() != a || q.backoff.Len() != b || grouped != u || q.early.Len() > b {
				t.Fatalf("seed %d: %d %d %d %d in places, heaps %d %d, groups %d, early %d; %d were added", seed, a, b, u, g, q.active.Len(), q.backoff.Len(), grouped, q.early.Len(), len(in))
			}
		}
	}
}
