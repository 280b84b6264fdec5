// Package perturb tests that controllers end in the same state whatever happens to them
// on the way, after the perturbations of Sieve (Sun et al., OSDI 2022):
//
//   - killed: the process ends after k of its writes, also in the middle of a batch, and a
//     new one starts with nothing but what the server holds;
//   - stale: as killed, and the new process first sees an older state, as an apiserver
//     that lags behind would show it, acts on it, and only then sees the present one;
//   - missed: the watches break while others write, and the server has forgotten the
//     changes by the time the controllers list again, so that they see the latest state of
//     each object and none before it.
//
// A [Scenario] is a list of steps: what users do. After each step the controllers and the
// other components act until nothing changes any more. The first run is not disturbed. Its
// end is the reference, and the number n of its writes the range of k: a run is made for
// each k below n, killed, and stale in two ways (without the process's own last write, and
// as before the step). The end is compared after [Normalize], which drops what may differ:
// uids, times, revisions and generated names.
//
// Checks that hold at any time are run after each write. Scenario.Bounds are those that
// depend on a process seeing what its predecessor wrote: the service waits for that
// (Cluster.CatchUp) before its controllers start, as all runs here do but the stale ones.
// Those show what is left if the apiserver that answers CatchUp is itself behind: bounds
// may be exceeded for a moment, the end must be the same.
//
// A run takes place in a synctest bubble: time is not real, and a run is at rest when all
// goroutines wait. No run depends on the machine's pace.
package perturb

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/grpc"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/testkit"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
)

// World is the cluster of a run. Its Cluster is nil: controllers have one each time they
// start.
type World = testkit.World

// Scenario is what happens in a run.
type Scenario struct {
	// Controllers are the names of the catalogue's controllers that run.
	Controllers []string
	// Steps are what users do.
	Steps []func(*World)
	// Others are the components that the controllers wait for, such as nodes. Each acts on
	// the state of the server, and reports whether it changed anything.
	Others []func(*World) bool
	// Rest is how long nothing must change before a step counts as done; 0 means 30 s.
	Rest time.Duration
	// Invariant, if set, returns an error if the stored objects are in a state that must
	// never be. It is called after each write.
	Invariant func([]client.Object) error
	// Bounds is Invariant for what a stale view may exceed.
	Bounds func([]client.Object) error
}

// Build makes the controllers of the given names.
type Build func(s *cluster.Cluster, names []string) []controller.Controller

// fault is the perturbation of a run.
type fault struct {
	// kills end the process, one after the other.
	kills []kill
	// missed is true if no change by others is seen on its own.
	missed bool
	// seed, if not 0, is the seed that the fault was made from.
	seed uint64
}

// kill is an end of the process.
type kill struct {
	// after is the number of the run's writes after which the process ends.
	after int
	// stale is what the next process sees at first.
	stale staleness
	// back is how far an anyWrite is back, as a share of the writes.
	back float64
}

type staleness int

const (
	fresh staleness = iota
	// lastWrite is the state before the process's own last write.
	lastWrite
	// beforeStep is the state before the step in which the process ended.
	beforeStep
	// anyWrite is the state before any of the run's writes.
	anyWrite
)

func (f fault) String() string {
	var parts []string
	if f.seed != 0 {
		parts = append(parts, fmt.Sprint("seed ", f.seed))
	}
	if f.missed {
		parts = append(parts, "missed states")
	}
	for _, k := range f.kills {
		seen := [...]string{"", " without its last write", " as before the step", fmt.Sprintf(" with %.0f %% of the writes unseen", 100*k.back)}[k.stale]
		parts = append(parts, fmt.Sprintf("killed after %d writes%s", k.after, seen))
	}
	if len(parts) == 0 {
		return "undisturbed"
	}
	return strings.Join(parts, ", ")
}

// random returns a fault of up to three kills for a run of about n writes.
func random(seed uint64, n int) fault {
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // it is to be repeatable
	f := fault{seed: seed, missed: rng.IntN(3) == 0}
	after := 0
	for range 1 + rng.IntN(3) {
		after += rng.IntN(n)
		k := kill{after: after, stale: staleness(rng.IntN(4)), back: rng.Float64()}
		if f.missed {
			k.stale = fresh // the server has forgotten the old states
		}
		f.kills = append(f.kills, k)
	}
	return f
}

// Test runs a scenario undisturbed, once for each perturbation, and once for each of a number
// of seeds, from each of which up to three kills and stale views are made. A seed that failed
// is repeated by first.
func Test(t *testing.T, s *Scenario, build Build, first, seeds uint64) {
	var reference *result
	t.Run("undisturbed", func(t *testing.T) { reference = execute(t, s, build, fault{}) })
	if t.Failed() {
		return
	}
	if len(reference.writes) == 0 {
		t.Fatal("the controllers write nothing in this scenario")
	}
	faults := []fault{{missed: true}}
	for k := range reference.writes {
		for _, stale := range []staleness{fresh, lastWrite, beforeStep} {
			faults = append(faults, fault{kills: []kill{{after: k, stale: stale}}})
		}
	}
	for seed := range seeds {
		faults = append(faults, random(first+seed, len(reference.writes)))
	}
	for _, f := range faults {
		t.Run(strings.ReplaceAll(f.String(), " ", "-"), func(t *testing.T) {
			got := execute(t, s, build, f)
			if diff := difference(reference.end, got.end); diff != "" {
				t.Errorf("%s: the end differs (- undisturbed, + this run):\n%s\nwrites:\n  %s", f, diff, strings.Join(got.writes, "\n  "))
			}
		})
	}
}

// result is what a run leaves behind.
type result struct {
	// writes are the controllers' writes. end is the normalized state.
	writes, end []string
}

// run is a run in progress.
type run struct {
	*World

	scenario *Scenario
	build    Build
	fault    fault
	conn     grpc.ClientConnInterface
	events   *event.Recorder

	process *process
	// step is the revision at the beginning of the present step.
	step uint64
	// killed counts the kills.
	killed int

	mu sync.Mutex
	// writes and before are the controllers' writes and the revisions before them.
	writes []string
	before []uint64
	// bounded is false once a process has seen a stale state.
	bounded bool
	failed  map[string]bool
}

// execute makes one run.
func execute(t *testing.T, s *Scenario, build Build, f fault) *result {
	out := &result{}
	synctest.Test(t, func(t *testing.T) {
		server, c := clienttest.StartServer(t)
		w := &World{T: t, Server: server, Client: c}
		r := &run{World: w, scenario: s, build: build, fault: f, conn: c.Conn(), bounded: true, failed: map[string]bool{}}
		r.events = event.NewRecorder(client.New(void{}, "events"), "test", "test-0")
		bystanders(w)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = r.events.Run(ctx) })
		t.Cleanup(func() { cancel(); wg.Wait() })
		r.start(0)
		for _, step := range s.Steps {
			r.step = server.Revision()
			r.change(func() bool { step(w); return true })
			r.settle()
		}
		r.process.stop()
		out.writes, out.end = r.writes, Normalize(server.Objects())
	})
	return out
}

// Bystander is the prefix of the names of objects that belong to nobody in a scenario. No
// controller may write to them.
const Bystander = "bystander"

// bystanders creates objects that resemble those of the scenarios but are none of the
// controllers' business.
func bystanders(w *World) {
	meta := metav1.ObjectMeta{Namespace: "default", Name: Bystander}
	cm := testkit.Create(w, &corev1.ConfigMap{ObjectMeta: meta})
	testkit.Create(w, &corev1.Secret{ObjectMeta: meta})
	testkit.Create(w, &corev1.Pod{ObjectMeta: meta})
	// It matches the selectors of workloads, but has another controller.
	meta.Name += "-owned"
	meta.Labels, meta.OwnerReferences = map[string]string{"app": "web"}, []metav1.OwnerReference{owner.Reference(cm)}
	testkit.Create(w, &corev1.Pod{ObjectMeta: meta})
}

// change lets others change something, unseen if states are to be missed.
func (r *run) change(f func() bool) bool {
	if !r.fault.missed {
		changed := f()
		r.check(changed)
		return changed
	}
	r.process.tap.hold()
	changed := f()
	r.check(changed)
	if changed {
		r.Server.Compact()
	}
	r.process.tap.release(changed)
	return changed
}

// longest bounds the time of a step.
const longest = time.Hour

// settle waits until neither the controllers nor the others change anything.
func (r *run) settle() {
	rest := r.scenario.Rest
	if rest == 0 {
		rest = 30 * time.Second
	}
	began := time.Now()
	for quiet := time.Duration(0); quiet < rest || r.process.tap.dead(); {
		if time.Since(began) > longest {
			r.Fatalf("%s: no rest after %s; the last writes are\n  %s", r.fault, longest, strings.Join(r.writes[max(0, len(r.writes)-20):], "\n  "))
		}
		synctest.Wait()
		if r.process.tap.dead() {
			r.restart()
			quiet = 0
			continue
		}
		before := r.Server.Revision()
		for _, other := range r.scenario.Others {
			r.change(func() bool { return other(r.World) })
		}
		pause := max(quiet, 20*time.Millisecond)
		time.Sleep(pause)
		synctest.Wait()
		if r.Server.Revision() != before {
			quiet = 0
		} else {
			quiet += pause
		}
	}
}

// restart replaces a process that was killed.
func (r *run) restart() {
	r.process.stop()
	k := r.fault.kills[r.killed]
	r.killed++
	var revision uint64
	switch n := len(r.before); {
	case k.stale == lastWrite && n > 0:
		revision = r.before[n-1]
	case k.stale == beforeStep:
		revision = r.step
	case k.stale == anyWrite && n > 0:
		revision = r.before[int(float64(n)*(1-k.back))]
	}
	r.bounded = r.bounded && revision == 0
	r.start(revision)
	if revision == 0 {
		return
	}
	// It acts on what it sees, and repeats what is refused.
	time.Sleep(2 * time.Second)
	synctest.Wait()
	r.process.tap.release(false)
}

// process is a running controller-manager.
type process struct {
	tap  *tap
	stop func()
}

// start starts the controllers. If revision is not 0, they see the state of that revision
// until the tap is released.
func (r *run) start(revision uint64) {
	limit := -1
	if r.killed < len(r.fault.kills) {
		limit = r.fault.kills[r.killed].after
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{tap: newTap(r, revision, limit)}
	s := cluster.New(client.New(p.tap, "controllers"), r.events, nil)
	r.build(s, r.scenario.Controllers)
	caches := s.Seal()
	var wg sync.WaitGroup
	for _, cache := range caches {
		wg.Go(func() { _ = cache.Run(ctx) })
	}
	wg.Go(func() {
		if revision == 0 {
			if err := s.CatchUp(ctx); err != nil {
				return
			}
		}
		if err := controller.Run(ctx, r.build(s, r.scenario.Controllers)...); err != nil {
			r.problem("run: " + err.Error())
		}
	})
	p.stop = sync.OnceFunc(func() { cancel(); p.tap.release(false); wg.Wait() })
	r.process = p
	r.Cleanup(p.stop)
}

// wrote records a write of the controllers.
func (r *run) wrote(what string, before uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes, r.before = append(r.writes, what), append(r.before, before)
}

// count returns how many writes the controllers have made.
func (r *run) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.writes)
}

// check runs the scenario's checks.
func (r *run) check(changed bool) {
	if !changed {
		return
	}
	objects := r.Server.Objects()
	if f := r.scenario.Invariant; f != nil {
		if err := f(objects); err != nil {
			r.problem(err.Error())
		}
	}
	if f := r.scenario.Bounds; f != nil && r.bounded {
		if err := f(objects); err != nil {
			r.problem(err.Error())
		}
	}
}

// problem fails the run, once for each problem.
func (r *run) problem(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.failed[what] {
		r.failed[what] = true
		r.Errorf("%s: %s; the writes so far are\n  %s", r.fault, what, strings.Join(r.writes, "\n  "))
	}
}
