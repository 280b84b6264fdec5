package fault

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
)

const (
	namespace = "fault"
	// slots is the number of objects of each kind that are written at a time. After
	// generation operations an object is replaced by a new one, which keeps histories short.
	slots      = 4
	generation = 150
	// workers is the number of workers per kind. Half of them use REST.
	workers = 6
	// pace is a worker's pause between two operations.
	pace = 20 * time.Millisecond
)

// api gives a worker access to one kind of object.
type api interface {
	via() string
	get(ctx context.Context, name string) (Version, error)
	list(ctx context.Context) (rv int64, items map[string]Version, err error)
	create(ctx context.Context, name, value string) (rv int64, err error)
	update(ctx context.Context, name, value string, expect int64) (rv int64, err error)
	patch(ctx context.Context, name, value string) (rv int64, err error)
	remove(ctx context.Context, name string, expect int64) error
	// batch executes independent writes together. It returns nil if the API has no batches.
	batch(ctx context.Context, ops []Op) (rvs []int64, errs []error)
}

// Load runs clients and records their history.
type Load struct {
	History
	began  time.Time
	values atomic.Int64
	used   map[string]*[slots]atomic.Int64 // operations, by kind and slot
}

func newLoad() *Load {
	return &Load{began: time.Now(), used: map[string]*[slots]atomic.Int64{ConfigMaps: {}, Leases: {}}}
}

func (l *Load) now() time.Duration { return time.Since(l.began) }

// run works on one kind until ctx ends.
func (l *Load) run(ctx context.Context, id int, kind string, a api, rng *rand.Rand) {
	known := map[string]int64{}
	name := func() string {
		slot := rng.IntN(slots)
		n := l.used[kind][slot].Add(1)
		return fmt.Sprintf("o%d-%d", slot, n/generation)
	}
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		op := Op{Client: id, Via: a.via(), Kind: kind, Name: name()}
		switch r := rng.IntN(100); {
		case r < 25:
			op.Action = Get
		case r < 30:
			op.Action = List
		case r < 40:
			l.batch(ctx, a, op, name, known, rng)
			continue
		default:
			l.choose(&op, known, rng)
		}
		l.one(ctx, a, op, known, rng)
	}
}

// choose turns op into a random write.
func (l *Load) choose(op *Op, known map[string]int64, rng *rand.Rand) {
	op.Value = fmt.Sprintf("v%d", l.values.Add(1))
	rv := known[op.Name]
	switch r := rng.IntN(100); {
	case rv == 0 || r < 20:
		op.Action = Create
	case r < 65:
		op.Action, op.Expect = Update, rv
	case r < 80:
		op.Action = Patch
	case r < 90:
		op.Action, op.Value = Delete, ""
	default:
		op.Action, op.Value, op.Expect = Delete, "", rv
	}
}

// patience returns a client's timeout. Some clients wait until the server has determined the
// outcome of a write; others give up earlier.
func patience(rng *rand.Rand) time.Duration {
	if rng.IntN(3) == 0 {
		return 20 * time.Second
	}
	return 2 * time.Second
}

func (l *Load) one(ctx context.Context, a api, op Op, known map[string]int64, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience(rng))
	defer cancel()
	var err error
	op.Call = l.now()
	switch op.Action {
	case Get:
		var v Version
		v, err = a.get(ctx, op.Name)
		op.Read, op.RV = v.Value, v.RV
	case List:
		op.RV, op.Items, err = a.list(ctx)
		op.Name = ""
	case Create:
		op.RV, err = a.create(ctx, op.Name, op.Value)
	case Update:
		op.RV, err = a.update(ctx, op.Name, op.Value, op.Expect)
	case Patch:
		op.RV, err = a.patch(ctx, op.Name, op.Value)
	case Delete:
		err = a.remove(ctx, op.Name, op.Expect)
	}
	op.Return = l.now()
	l.tell(op, err, known)
}

// batch executes op and writes of other objects as one batch.
func (l *Load) batch(ctx context.Context, a api, op Op, name func() string, known map[string]int64, rng *rand.Rand) {
	ops := []Op{op}
	for range rng.IntN(3) {
		next := op
		next.Name = name()
		if next.Name != op.Name {
			ops = append(ops, next)
		}
	}
	for i := range ops {
		l.choose(&ops[i], known, rng)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience(rng))
	defer cancel()
	call := l.now()
	rvs, errs := a.batch(ctx, ops)
	if rvs == nil {
		l.one(ctx, a, ops[0], known, rng)
		return
	}
	end := l.now()
	for i := range ops {
		ops[i].Via, ops[i].Call, ops[i].Return, ops[i].RV = "batch", call, end, rvs[i]
		l.tell(ops[i], errs[i], known)
	}
}

// tell records an operation and its result.
func (l *Load) tell(op Op, err error, known map[string]int64) {
	op.Outcome = outcomeOf(err)
	if err != nil {
		op.RV, op.Err = 0, err.Error()
		if len(op.Err) > 300 {
			op.Err = op.Err[:300]
		}
	}
	switch {
	case op.Action == List:
	case op.Outcome == Done && op.Action != Delete:
		known[op.Name] = op.RV
	case op.Outcome == Done, op.Outcome == NotFound:
		delete(known, op.Name)
	case op.Outcome == Exists, op.Outcome == Conflict:
		known[op.Name] = 1 // it exists, at an unknown version
	}
	if op.Outcome == Done || op.Outcome == NotFound || op.Outcome == Exists || op.Outcome == Conflict {
		op.Err = "" // an expected result
	}
	l.add(op)
}

// outcomeOf returns the outcome of a write that returned err. It is unknown unless the error
// is a Status of the server, or the request was never sent.
func outcomeOf(err error) Outcome {
	if err == nil {
		return Done
	}
	if errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "Error while dialing") {
		return Refused // it was never sent
	}
	var s apierrors.APIStatus
	if !errors.As(err, &s) {
		return Unknown
	}
	switch {
	case apierrors.IsAlreadyExists(err):
		return Exists
	case apierrors.IsConflict(err):
		return Conflict
	case apierrors.IsNotFound(err):
		return NotFound
	case apierrors.IsServiceUnavailable(err), apierrors.IsTooManyRequests(err):
		return Refused
	}
	return Unknown
}

// object is the set of the kinds' Go types.
type object interface {
	client.Object
	*corev1.ConfigMap | *coordinationv1.Lease
}

// kindOf creates and interprets objects of one kind.
type kindOf[T object] struct {
	kind, path, patch string
	make              func(meta metav1.ObjectMeta, value string) T
	value             func(T) string
}

var configMaps = kindOf[*corev1.ConfigMap]{
	kind: ConfigMaps, path: "/api/v1", patch: `{"data":{"v":%q}}`,
	make: func(meta metav1.ObjectMeta, value string) *corev1.ConfigMap {
		return &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: meta, Data: map[string]string{"v": value}}
	},
	value: func(c *corev1.ConfigMap) string { return c.Data["v"] },
}

var leases = kindOf[*coordinationv1.Lease]{
	kind: Leases, path: "/apis/coordination.k8s.io/v1", patch: `{"spec":{"holderIdentity":%q}}`,
	make: func(meta metav1.ObjectMeta, value string) *coordinationv1.Lease {
		return &coordinationv1.Lease{
			TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
			ObjectMeta: meta, Spec: coordinationv1.LeaseSpec{HolderIdentity: &value},
		}
	},
	value: func(l *coordinationv1.Lease) string {
		if l.Spec.HolderIdentity == nil {
			return ""
		}
		return *l.Spec.HolderIdentity
	},
}

func (k kindOf[T]) object(name, value string, rv int64) T {
	meta := metav1.ObjectMeta{Namespace: namespace, Name: name}
	if rv != 0 {
		meta.ResourceVersion = strconv.FormatInt(rv, 10)
	}
	return k.make(meta, value)
}

func (k kindOf[T]) version(obj T) Version { return Version{k.value(obj), revision(obj)} }

func revision(obj metav1.Object) int64 {
	rv, _ := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	return rv
}

// grpcAPI accesses a kind over gRPC, balanced over all members.
type grpcAPI[T object] struct {
	kindOf[T]
	client *client.Client
}

func (g grpcAPI[T]) via() string                 { return "grpc" }
func (g grpcAPI[T]) objects() client.Resource[T] { return client.For[T](g.client) }

func (g grpcAPI[T]) get(ctx context.Context, name string) (Version, error) {
	obj, err := g.objects().Get(ctx, namespace, name)
	if err != nil {
		return Version{}, err
	}
	return g.version(obj), nil
}

func (g grpcAPI[T]) list(ctx context.Context) (int64, map[string]Version, error) {
	list, meta, err := g.objects().List(ctx, client.ListOptions{Namespace: namespace})
	if err != nil {
		return 0, nil, err
	}
	items := make(map[string]Version, len(list))
	for _, obj := range list {
		items[obj.GetName()] = g.version(obj)
	}
	rv, err := strconv.ParseInt(meta.ResourceVersion, 10, 64)
	return rv, items, err
}

func written[T object](obj T, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return revision(obj), nil
}

func (g grpcAPI[T]) create(ctx context.Context, name, value string) (int64, error) {
	return written(g.objects().Create(ctx, g.object(name, value, 0)))
}

func (g grpcAPI[T]) update(ctx context.Context, name, value string, expect int64) (int64, error) {
	return written(g.objects().Update(ctx, g.object(name, value, expect)))
}

func (g grpcAPI[T]) patch(ctx context.Context, name, value string) (int64, error) {
	return written(g.objects().Patch(ctx, namespace, name, types.MergePatchType, fmt.Appendf(nil, g.kindOf.patch, value)))
}

func precondition(expect int64) []client.DeleteOption {
	if expect == 0 {
		return nil
	}
	return []client.DeleteOption{client.ResourceVersion(strconv.FormatInt(expect, 10))}
}

func (g grpcAPI[T]) remove(ctx context.Context, name string, expect int64) error {
	return g.objects().Delete(ctx, namespace, name, precondition(expect)...)
}

func (g grpcAPI[T]) batch(ctx context.Context, ops []Op) ([]int64, []error) {
	writes := make([]client.Write, len(ops))
	for i, op := range ops {
		switch op.Action {
		case Create:
			writes[i] = client.CreateWrite(g.object(op.Name, op.Value, 0))
		case Update:
			writes[i] = client.UpdateWrite(g.object(op.Name, op.Value, op.Expect))
		case Patch:
			writes[i] = client.PatchWrite[T](namespace, op.Name, types.MergePatchType, fmt.Appendf(nil, g.kindOf.patch, op.Value))
		default:
			writes[i] = client.DeleteWrite[T](namespace, op.Name, precondition(op.Expect)...)
		}
	}
	results, err := g.client.Commit(ctx, writes...)
	rvs, errs := make([]int64, len(ops)), make([]error, len(ops))
	for i := range ops {
		if i >= len(results) {
			errs[i] = err
			continue
		}
		if errs[i] = results[i].Err; errs[i] == nil {
			rvs[i], _ = strconv.ParseInt(results[i].ResourceVersion, 10, 64)
		}
	}
	return rvs, errs
}

// Probe writes one object repeatedly and records when a write succeeded.
type Probe struct {
	Name  string
	write func(ctx context.Context, n int) error
	mu    sync.Mutex
	times []time.Time
	fails map[string]int
}

// run probes until ctx ends.
func (p *Probe) run(ctx context.Context) {
	p.fails = map[string]int{}
	for n := 0; ctx.Err() == nil; n++ {
		call, cancel := context.WithTimeout(ctx, time.Second)
		err := p.write(call, n)
		cancel()
		p.mu.Lock()
		if err == nil {
			p.times = append(p.times, time.Now())
		} else if len(p.fails) < 20 {
			p.fails[err.Error()]++
		}
		p.mu.Unlock()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// Gap returns the longest time without a successful write that overlaps the time from from to to,
// including the part of it that lies outside.
func (p *Probe) Gap(from, to time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var most time.Duration
	last := from
	for _, at := range p.times {
		if at.After(from) && last.Before(to) {
			most = max(most, at.Sub(last))
		}
		last = at
	}
	return max(most, to.Sub(last))
}

// since reports whether a write has succeeded after at.
func (p *Probe) since(at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.times) > 0 && p.times[len(p.times)-1].After(at)
}

// failures returns the number of errors so far, by text.
func (p *Probe) failures() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.fails)
}
