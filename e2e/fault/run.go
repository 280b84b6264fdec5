package fault

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

// Limits bound a run by the number of faults or by time; 0 means no bound. Without either, the run
// ends with the plan.
type Limits struct {
	Faults int
	Time   time.Duration
}

// follower is a watcher of one of the kinds.
type follower interface {
	run(ctx context.Context)
	reached(rv int64) bool
	watched() *Watched
	again(ctx context.Context, all []Event, times int) ([]string, int)
	reasons() map[string]int
}

// runner is the state of one run.
type runner struct {
	c        *Cluster
	log      func(format string, args ...any)
	load     *Load
	watchers []follower
	probes   []*Probe
	wrong    []string
	worst    map[string]time.Duration // by probe
	gaps     map[string][]time.Duration
}

// Run injects the plan's faults under load, and returns the problems that the checks find.
func (c *Cluster) Run(ctx context.Context, plan *Plan, seed uint64, limits Limits, log func(format string, args ...any)) (wrong []string, err error) {
	r := &runner{c: c, log: log, load: newLoad(), worst: map[string]time.Duration{}, gaps: map[string][]time.Duration{}}
	all, err := c.Dial(c.Members...)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	hc, err := newHTTP(c.pki)
	if err != nil {
		return nil, err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if err := wait.Until(ctx, time.Minute, func(ctx context.Context) error {
		_, err := client.For[*corev1.Namespace](all).Create(ctx, ns)
		return err
	}); err != nil {
		return nil, err
	}
	if err := r.prepare(ctx, all, hc); err != nil {
		return nil, err
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	var watches sync.WaitGroup
	defer watches.Wait()
	for i, m := range c.Members {
		one, err := c.Dial(m)
		if err != nil {
			return nil, err
		}
		defer one.Close()
		if err := r.watch(ctx, one, m.Name, rand.New(rand.NewPCG(seed, uint64(100+i)))); err != nil {
			return nil, err
		}
	}
	for _, w := range r.watchers {
		watches.Go(func() { w.run(watching) })
	}
	working, stopWorking := context.WithCancel(ctx)
	defer stopWorking()
	var work sync.WaitGroup
	for i := range workers {
		rng := func(n int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(n))) }
		var cms, ls api = grpcAPI[*corev1.ConfigMap]{configMaps, all}, grpcAPI[*coordinationv1.Lease]{leases, all}
		if i%2 == 1 {
			cms = restAPI[*corev1.ConfigMap]{configMaps, hc, c.https(), rng(1000 + i)}
			ls = restAPI[*coordinationv1.Lease]{leases, hc, c.https(), rng(2000 + i)}
		}
		work.Go(func() { r.load.run(working, i, ConfigMaps, cms, rng(i)) })
		work.Go(func() { r.load.run(working, 100+i, Leases, ls, rng(100+i)) })
	}
	for _, p := range r.probes {
		work.Go(func() { p.run(working) })
	}
	r.inject(ctx, plan, limits)
	stopWorking()
	work.Wait()
	r.finish(ctx, all)
	events := map[string][]Event{}
	var merged []string
	for _, kind := range []string{ConfigMaps, Leases} {
		var wrong []string
		events[kind], wrong = merge(r.watchesOf(kind))
		merged = append(merged, wrong...)
	}
	r.resume(ctx, events)
	stopWatching()
	watches.Wait()
	r.check(events, merged)
	return r.wrong, ctx.Err()
}

// prepare creates the probes and the objects that they write.
func (r *runner) prepare(ctx context.Context, all *client.Client, hc *http.Client) error {
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "probe"}
	for _, kind := range []string{"go", "rest"} {
		meta.Name = "probe-" + kind
		if _, err := client.For[*corev1.ConfigMap](all).Create(ctx, configMaps.make(meta, "")); err != nil {
			return err
		}
		if _, err := client.For[*coordinationv1.Lease](all).Create(ctx, leases.make(meta, "0")); err != nil {
			return err
		}
	}
	members := r.c.https()
	r.probes = []*Probe{
		goProbe(configMaps, all), goProbe(leases, all),
		restProbe(configMaps, hc, members), restProbe(leases, hc, members),
	}
	return nil
}

func goProbe[T object](k kindOf[T], all *client.Client) *Probe {
	return &Probe{Name: "go " + k.kind, write: func(ctx context.Context, n int) error {
		_, err := client.For[T](all).Patch(ctx, metav1.NamespaceDefault, "probe-go", types.MergePatchType, fmt.Appendf(nil, k.patch, fmt.Sprint(n)))
		return err
	}}
}

// restProbe uses the next member after a failure, as a balancer does for its clients.
func restProbe[T object](k kindOf[T], hc *http.Client, members []string) *Probe {
	at := 0
	return &Probe{Name: "rest " + k.kind, write: func(ctx context.Context, n int) error {
		err := request(ctx, hc, members[at%len(members)], http.MethodPatch,
			k.path+"/namespaces/default/"+k.kind+"/probe-rest", mergeType, fmt.Appendf(nil, k.patch, fmt.Sprint(n)), nil)
		if err != nil {
			at++
		}
		return err
	}}
}

// watch adds the watchers of one member.
func (r *runner) watch(ctx context.Context, one *client.Client, name string, rng *rand.Rand) error {
	cms, err := newWatcher(ctx, configMaps, one, name, r.load.now, rng)
	if err != nil {
		return err
	}
	ls, err := newWatcher(ctx, leases, one, name, r.load.now, rand.New(rand.NewPCG(rng.Uint64(), 0)))
	if err != nil {
		return err
	}
	r.watchers = append(r.watchers, cms, ls)
	return nil
}

func newWatcher[T object](ctx context.Context, k kindOf[T], one *client.Client, name string, now func() time.Duration, rng *rand.Rand) (*watcher[T], error) {
	rv, items, err := grpcAPI[T]{k, one}.list(ctx)
	if err != nil {
		return nil, err
	}
	if len(items) > 0 {
		return nil, fmt.Errorf("there are %s already", k.kind)
	}
	return &watcher[T]{kindOf: k, client: one, now: now, rng: rng, seen: Watched{Name: name + " " + k.kind, Kind: k.kind, From: rv}}, nil
}

func (r *runner) watchesOf(kind string) (out []*Watched) {
	for _, w := range r.watchers {
		if seen := w.watched(); seen.Kind == kind {
			out = append(out, seen)
		}
	}
	return out
}

func (r *runner) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.log("WRONG: %s", text)
	r.wrong = append(r.wrong, text)
}

// inject injects the faults of the plan, step by step.
func (r *runner) inject(ctx context.Context, plan *Plan, limits Limits) {
	began := time.Now()
	for faults := 0; ctx.Err() == nil; {
		if limits.Faults > 0 && faults >= limits.Faults || limits.Time > 0 && time.Since(began) > limits.Time {
			return
		}
		step := plan.Step()
		if len(step) == 0 {
			return
		}
		faults += len(step)
		r.step(ctx, step)
		if len(r.wrong) > 0 {
			return // stop here, so that the members' logs end with the problem
		}
	}
}

// step injects faults together, heals them, and waits until the cluster has recovered.
func (r *runner) step(ctx context.Context, faults []Fault) {
	began := time.Now()
	taken := map[*Member]bool{}
	var done []injection
	var what []string
	var last time.Duration
	for _, f := range faults {
		m := r.c.target(ctx, f)
		for taken[m] {
			m = r.c.Members[(m.Index+1)%len(r.c.Members)]
		}
		taken[m] = true
		i, err := r.c.inject(ctx, f, m)
		done, what, last = append(done, i), append(what, i.what), max(last, f.For)
		if err != nil {
			r.fail("%s: %v", i.what, err)
		}
	}
	select {
	case <-time.After(last):
	case <-ctx.Done():
	}
	for _, i := range done {
		if i.heal != nil {
			if err := i.heal(); err != nil {
				r.fail("heal %s: %v", i.what, err)
			}
		}
	}
	healed := time.Now()
	if err := r.c.Whole(ctx, wholeTime); err != nil {
		r.fail("after %s: %v", strings.Join(what, " and "), err)
	}
	whole := time.Since(healed)
	for _, p := range r.probes {
		if err := wait.Until(ctx, time.Minute, func(context.Context) error {
			if !p.since(healed) {
				return fmt.Errorf("no successful write by %s", p.Name)
			}
			return nil
		}); err != nil {
			r.fail("after %s: %v", strings.Join(what, " and "), err)
		}
	}
	var gaps []string
	for _, p := range r.probes {
		gap := p.Gap(began, time.Now())
		r.worst[p.Name] = max(r.worst[p.Name], gap)
		r.gaps[p.Name] = append(r.gaps[p.Name], gap)
		gaps = append(gaps, fmt.Sprintf("%s %.2fs", p.Name, gap.Seconds()))
	}
	r.log("%7.1fs %s: recovered %.1fs after it was healed; longest time without a write: %s",
		began.Sub(r.load.began).Seconds(), strings.Join(what, " and "), whole.Seconds(), strings.Join(gaps, ", "))
}

// finish writes one last object of each kind and waits until every watch has seen it.
func (r *runner) finish(ctx context.Context, all *client.Client) {
	r.last(ctx, grpcAPI[*corev1.ConfigMap]{configMaps, all}, ConfigMaps)
	r.last(ctx, grpcAPI[*coordinationv1.Lease]{leases, all}, Leases)
}

func (r *runner) last(ctx context.Context, a api, kind string) {
	op := Op{Client: -1, Via: "grpc", Kind: kind, Name: "end", Action: Create, Value: "end of " + kind, Call: r.load.now()}
	rv, err := a.create(ctx, op.Name, op.Value)
	op.RV, op.Return = rv, r.load.now()
	if err != nil {
		r.fail("the final write of %s: %v", kind, err)
		return
	}
	r.load.tell(op, nil, map[string]int64{})
	for _, w := range r.watchers {
		if w.watched().Kind != kind {
			continue
		}
		if err := wait.Until(ctx, time.Minute, func(context.Context) error {
			if !w.reached(rv) {
				return fmt.Errorf("it has not seen revision %d", rv)
			}
			return nil
		}); err != nil {
			r.fail("the watch %s: %v: %v", w.watched().Name, err, w.reasons())
		}
	}
}

// resumes is how often each watch is resumed from an earlier revision at the end.
const resumes = 30

func (r *runner) resume(ctx context.Context, events map[string][]Event) {
	total, old := 0, 0
	for _, w := range r.watchers {
		wrong, expired := w.again(ctx, events[w.watched().Kind], resumes)
		for _, text := range wrong {
			r.fail("%s", text)
		}
		total, old = total+resumes, old+expired
	}
	r.log("watches resumed from earlier revisions: %d times; %d of these revisions were too old", total, old)
}

// check runs all checks on the history and the watches.
func (r *runner) check(events map[string][]Event, wrong []string) {
	ops := r.load.All()
	r.log("%d operations: %s", len(ops), sorted(r.load.Counts()))
	r.log("other errors:%s", often(r.load.errors))
	for _, kind := range []string{ConfigMaps, Leases} {
		cut, gaps := 0, 0
		for _, w := range r.watchesOf(kind) {
			cut, gaps = cut+w.Resumed, gaps+len(w.Gaps)
		}
		r.log("%s: %d events; watches were resumed %d times, %d times not possible", kind, len(events[kind]), cut, gaps)
		wrong = append(wrong, accounted(kind, ops, events[kind])...)
		wrong = append(wrong, listed(kind, ops, events[kind])...)
		wrong = append(wrong, inTime(kind, ops)...)
	}
	why := map[string]int{}
	for _, w := range r.watchers {
		for text, n := range w.reasons() {
			why[text] += n
		}
	}
	r.log("why watches ended, other than by being cut:%s", often(why))
	r.report("watches, lists and acknowledged writes", wrong)
	r.report("linearizability", linearizable(ops, events, 2*time.Minute))
	for _, p := range r.probes {
		gaps := r.gaps[p.Name]
		slices.Sort(gaps)
		if len(gaps) > 0 {
			r.log("no write by %s: %.2fs in the median, %.2fs in nine of ten, %.2fs at worst", p.Name,
				gaps[len(gaps)/2].Seconds(), gaps[len(gaps)*9/10].Seconds(), gaps[len(gaps)-1].Seconds())
		}
	}
	r.log("packets: %d, of which %d were dropped", r.c.Network.packets.Load(), r.c.Network.dropped.Load())
}

func (r *runner) report(what string, wrong []string) {
	if len(wrong) == 0 {
		r.log("%s: ok", what)
	}
	for i, text := range wrong {
		if i == 10 {
			r.fail("%s: and %d more", what, len(wrong)-i)
			break
		}
		r.fail("%s", text)
	}
}

// often returns the most frequent texts, one per line.
func often(counts map[string]int) (out string) {
	texts := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return counts[b] - counts[a] })
	for i, text := range texts {
		if i == 12 {
			return out + fmt.Sprintf("\n\tand %d more", len(texts)-i)
		}
		out += fmt.Sprintf("\n\t%d× %s", counts[text], text)
	}
	return out
}

func sorted(counts map[string]int) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprintf("%s %d", k, counts[k]))
	}
	return strings.Join(out, ", ")
}
