// Package resourcequota keeps the status of ResourceQuotas: what is limited, and how
// much of it is used.
//
// The apiserver charges a quota before it stores an object (see package quota of
// services/internal). This controller counts the stored objects to account for what the
// charges do not show: deleted objects, finished pods, writes that failed after their
// charge, and new quotas.
//
// An object is charged but not stored, then charged and stored, then gone. A count that
// starts after a charge can only miss an object in the first of these states. To keep
// used from falling below what is stored or about to be stored, the controller adds the
// charges of the last window to each count, even those whose objects it has counted
// already, and it does not lower used within a window of first seeing a quota, because it
// has not seen the quota's earlier charges. A later count corrects the excess. The status
// update is conditional on the version of the quota from before the count, so a charge
// during the count makes it fail.
//
// Counts use consistent lists, not caches. The controller must never lower used below
// what is stored. The one exception is a write that takes longer than the window from
// its charge to its commit: used may then be too low by that write's charge.
package resourcequota

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/quota"
)

const (
	// window is the longest time that a write is assumed to take from its charge to its
	// commit.
	window = 10 * time.Second
	// every is how often a quota is counted if no event causes it. The value is
	// Kubernetes' default.
	every = 5 * time.Minute
	// pause is the minimum time between two counts of a quota.
	pause = 500 * time.Millisecond
)

type reconciler struct {
	*cluster.Cluster

	ResourceQuotas *client.Cache[*corev1.ResourceQuota]

	quotas client.Resource[*corev1.ResourceQuota]
	writes *controller.Writes
	kinds  map[schema.GroupResource]*client.Kind
	window time.Duration
	now    func() time.Time

	mu      sync.Mutex
	follows map[controller.Key]*charges
}

// charges holds the recent charges of a quota.
type charges struct {
	uid     types.UID
	since   time.Time // when the quota was first seen
	counted time.Time // when it was last counted
	recent  []charge
	own     own
}

// own is this controller's last update of a quota's status: the version that it replaced,
// and the usage that it wrote, or may have written if its outcome is unknown.
type own struct {
	base string
	used corev1.ResourceList
}

// before returns the usage to which an event adds charges. That is the old object's, unless
// the watch was interrupted and the event spans this controller's own update, which
// lowered the usage: then charges after the update could hide behind the difference.
func (f *charges) before(old *corev1.ResourceQuota) corev1.ResourceList {
	if f.own.base == "" || f.own.base != old.ResourceVersion {
		return old.Status.Used
	}
	used := corev1.ResourceList{}
	for name, q := range old.Status.Used {
		if mine, ok := f.own.used[name]; ok && mine.Cmp(q) < 0 {
			q = mine
		}
		used[name] = q
	}
	return used
}

// charge is the sum of the charges within the second that ends at at.
type charge struct {
	at   time.Time
	used corev1.ResourceList
}

// add records a charge. To keep the list short, charges within a second are summed and
// those older than the window are dropped.
func (f *charges) add(now time.Time, window time.Duration, used corev1.ResourceList) {
	f.drop(now, window)
	if n := len(f.recent); n > 0 && now.Before(f.recent[n-1].at) {
		f.recent[n-1].used = quota.Add(f.recent[n-1].used, used)
		return
	}
	// The entry is dated to the end of its second, when its last charge may come.
	f.recent = append(f.recent, charge{now.Add(time.Second), used})
}

func (f *charges) drop(now time.Time, window time.Duration) {
	f.recent = slices.DeleteFunc(f.recent, func(c charge) bool { return now.Sub(c.at) > window })
}

// New returns the ResourceQuota controller.
func New(s *cluster.Cluster) controller.Controller { return newController(s, window) }

func newController(s *cluster.Cluster, window time.Duration) controller.Controller {
	r := &reconciler{
		window:  window,
		Cluster: s, ResourceQuotas: cluster.Of[*corev1.ResourceQuota](s, cluster.ByNamespace), quotas: client.For[*corev1.ResourceQuota](s.Client),
		kinds: map[schema.GroupResource]*client.Kind{}, now: time.Now, follows: map[controller.Key]*charges{},
	}
	r.writes = controller.NewWrites(r.ResourceQuotas)
	for _, k := range client.Kinds() {
		if k.Namespaced && k.Stored() && quota.Counted(k.GVR().GroupResource()) {
			r.kinds[k.GVR().GroupResource()] = k
		}
	}
	pods, services, claims := cluster.Of[*corev1.Pod](s), cluster.Of[*corev1.Service](s), cluster.Of[*corev1.PersistentVolumeClaim](s)
	sources := []controller.Source{
		controller.From(r.ResourceQuotas, r.ofQuota),
		controller.From(pods, r.ofPod),
		controller.From(services, func(ev client.Event[*corev1.Service]) []controller.Key {
			return r.inNamespace(ev.Object.Namespace)
		}),
		controller.From(claims, func(ev client.Event[*corev1.PersistentVolumeClaim]) []controller.Key {
			return r.inNamespace(ev.Object.Namespace)
		}),
	}
	for _, k := range r.kinds {
		if k == pods.Kind() || k == services.Kind() || k == claims.Kind() || k == r.ResourceQuotas.Kind() {
			continue
		}
		for _, c := range cluster.All(s, k) {
			sources = append(sources, c.Source(r.deletions))
		}
	}
	return controller.Controller{
		Name: "resourcequota", Workers: 5, Reconcile: r.reconcile, Fresh: r.writes.Fresh, Sources: sources,
	}
}

// deletions maps the deletion of an object to the quotas of its namespace. New objects were
// charged by the apiserver.
func (r *reconciler) deletions(ev client.Event[client.Object]) []controller.Key {
	if ev.Type != client.Deleted {
		return nil
	}
	return r.inNamespace(ev.Object.GetNamespace())
}

func (r *reconciler) inNamespace(namespace string) []controller.Key {
	var keys []controller.Key
	for _, q := range r.ResourceQuotas.ByIndex(cluster.ByNamespace, namespace) {
		keys = append(keys, client.KeyOf(q))
	}
	return keys
}

// ofPod maps a pod event to the quotas of the namespace if the pod may use less than
// before: it was deleted, has finished, has started terminating, or its spec or what it
// was allocated has changed. The apiserver charged what it uses more. The cache holds
// neither resources nor the deadline, so changes are told by the generation.
func (r *reconciler) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	if ev.Type == client.Deleted || ev.Type == client.Modified && lessens(ev.Old, ev.Object) {
		return r.inNamespace(ev.Object.Namespace)
	}
	return nil
}

func lessens(old, p *corev1.Pod) bool {
	bound := old.Spec.NodeName != p.Spec.NodeName
	return podstate.Finished(p) != podstate.Finished(old) || (p.DeletionTimestamp == nil) != (old.DeletionTimestamp == nil) ||
		p.Generation != old.Generation && !bound || resizing(p) != resizing(old)
}

// resizing reports whether a change of the pod's resources is under way.
func resizing(p *corev1.Pod) bool {
	return podstate.Condition(p, corev1.PodResizePending) != nil || podstate.Condition(p, corev1.PodResizeInProgress) != nil
}

// ofQuota records a quota's charges, and returns its key if the quota is to be counted.
func (r *reconciler) ofQuota(ev client.Event[*corev1.ResourceQuota]) []controller.Key {
	key, now := client.KeyOf(ev.Object), r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.follows[key]
	switch {
	case ev.Type == client.Deleted:
		delete(r.follows, key)
		return []controller.Key{key}
	case f == nil || f.uid != ev.Object.UID:
		r.follows[key] = &charges{uid: ev.Object.UID, since: now}
	case ev.Type == client.Modified:
		if more := quota.Less(ev.Object.Status.Used, f.before(ev.Old)); len(more) > 0 {
			f.add(now, r.window, more)
		}
		if apiequality.Semantic.DeepEqual(ev.Object.Spec, ev.Old.Spec) {
			return nil // a charge, or this controller's own status update
		}
	}
	return []controller.Key{key}
}

// pending returns the charges within the window. lower reports whether status.used may be
// lowered. next is the time until the result changes.
func (r *reconciler) pending(key controller.Key, now time.Time) (used corev1.ResourceList, lower bool, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.follows[key]
	if f == nil {
		return nil, false, r.window
	}
	f.counted = now
	f.drop(now, r.window)
	for _, c := range f.recent {
		used = quota.Add(used, c.used)
		next = r.window - now.Sub(f.recent[0].at)
	}
	if young := r.window - now.Sub(f.since); young > 0 {
		return used, false, young
	}
	return used, true, next
}

// writing notes that the status of a quota is about to be updated.
func (r *reconciler) writing(key controller.Key, base string, used corev1.ResourceList) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.follows[key]; f != nil {
		f.own = own{base, used}
	}
}

// early returns how long to wait before counting a quota again. It is not positive if the
// quota may be counted now.
func (r *reconciler) early(key controller.Key) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.follows[key]; f != nil {
		return pause - r.now().Sub(f.counted)
	}
	return 0
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	q, ok := r.ResourceQuotas.Get(key.Namespace, key.Name)
	if !ok || q.DeletionTimestamp != nil {
		return controller.Result{}, nil
	}
	if wait := r.early(key); wait > 0 {
		return controller.Result{RequeueAfter: wait}, nil
	}
	now := r.now()
	charged, lower, next := r.pending(key, now)
	counted, err := r.count(ctx, q, now)
	if err != nil {
		return controller.Result{}, fmt.Errorf("count usage: %w", err)
	}
	status := Status(q, counted, charged, lower)
	again := controller.Result{RequeueAfter: every}
	if next > 0 && !apiequality.Semantic.DeepEqual(status.Used, counted) {
		again.RequeueAfter = next
	}
	if apiequality.Semantic.DeepEqual(status, q.Status) {
		return again, nil
	}
	changed := q.DeepCopy()
	changed.Status = status
	r.writing(key, q.ResourceVersion, status.Used)
	got, err := r.quotas.UpdateStatus(ctx, changed)
	switch {
	case apierrors.IsNotFound(err):
		return controller.Result{}, nil
	case apierrors.IsConflict(err):
		// The quota was charged during the count, so it is counted again.
		return controller.Result{RequeueAfter: pause}, nil
	case err != nil:
		return controller.Result{}, fmt.Errorf("update status: %w", err)
	}
	r.writes.Wrote(key, got.ResourceVersion)
	return again, nil
}

// count returns how much of each limited resource is used.
func (r *reconciler) count(ctx context.Context, q *corev1.ResourceQuota, now time.Time) (corev1.ResourceList, error) {
	total := corev1.ResourceList{}
	limits := func(gr schema.GroupResource) bool {
		for name := range q.Spec.Hard {
			if quota.Uses(gr, name) {
				return true
			}
		}
		return false
	}
	// Covers looks at status.hard, which may not be written yet.
	of := q.DeepCopy()
	of.Status.Hard = q.Spec.Hard
	for gr, k := range r.kinds {
		if !limits(gr) {
			continue
		}
		var err error
		switch gr.Resource {
		case "pods":
			total, err = sum[*corev1.Pod](ctx, r, of, gr, total, now)
		case "services":
			total, err = sum[*corev1.Service](ctx, r, of, gr, total, now)
		case "persistentvolumeclaims":
			total, err = sum[*corev1.PersistentVolumeClaim](ctx, r, of, gr, total, now)
		default:
			total, err = r.number(ctx, k, of, total)
		}
		if apierrors.IsNotFound(err) {
			err = nil // the server does not serve this kind
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", gr.Resource, err)
		}
	}
	out := corev1.ResourceList{}
	for name := range q.Spec.Hard {
		if r.countable(name) {
			out[name] = total[name]
		}
	}
	return out, nil
}

// countable reports whether objects of any kind use a resource. Others have no usage, as in
// Kubernetes: a usage of 0 would claim that they were counted.
func (r *reconciler) countable(name corev1.ResourceName) bool {
	for gr := range r.kinds {
		if quota.Uses(gr, name) {
			return true
		}
	}
	return false
}

// sum adds the usage of the namespace's objects of type T to total.
func sum[T client.Object](ctx context.Context, r *reconciler, q *corev1.ResourceQuota, gr schema.GroupResource, total corev1.ResourceList, now time.Time) (corev1.ResourceList, error) {
	for obj, err := range client.For[T](r.Client).All(ctx, client.ListOptions{Namespace: q.Namespace}) {
		if err != nil {
			return total, err
		}
		if quota.Covers(q, gr, obj) {
			total = quota.Add(total, quota.Usage(gr, obj, now))
		}
	}
	return total, nil
}

// number adds the usage of the namespace's objects of kind k to total. It lists only
// metadata, so it is for kinds whose usage is their number.
func (r *reconciler) number(ctx context.Context, k *client.Kind, q *corev1.ResourceQuota, total corev1.ResourceList) (corev1.ResourceList, error) {
	gr := k.GVR().GroupResource()
	for obj, err := range client.Metadata(r.Client, k).All(ctx, client.ListOptions{Namespace: q.Namespace}) {
		if err != nil {
			return total, err
		}
		if quota.Covers(q, gr, obj) {
			total = quota.Add(total, quota.Usage(gr, obj, time.Time{}))
		}
	}
	return total, nil
}

// Status computes a quota's status from a count. used is raised to the count at once. If
// lower is true it may be lowered to the sum of the count and the recent charges;
// otherwise it stays as it is.
func Status(q *corev1.ResourceQuota, counted, charged corev1.ResourceList, lower bool) corev1.ResourceQuotaStatus {
	s := corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: corev1.ResourceList{}}
	for name := range q.Spec.Hard {
		now, ok := counted[name]
		if !ok {
			continue
		}
		used := now.DeepCopy()
		if was, ok := q.Status.Used[name]; ok && was.Cmp(used) > 0 {
			if !lower {
				used = was.DeepCopy()
			} else if extra, ok := charged[name]; ok {
				used.Add(extra)
				if used.Cmp(was) > 0 {
					used = was.DeepCopy()
				}
			}
		}
		s.Used[name] = used
	}
	return s
}
