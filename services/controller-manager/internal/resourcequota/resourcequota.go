// Package resourcequota keeps the status of ResourceQuotas: what is limited, and how
// much of it is used.
//
// The apiserver charges a quota before it stores an object. This controller counts the
// stored objects to account for what the charges do not show: deleted objects, finished
// pods, writes that failed after their charge, and new quotas. Package quota of
// services/internal describes the protocol: usage that was recorded before is only
// changed by a count that began after the end of an accounting period, on the condition
// of the version of the quota from before that end.
//
// Counts use consistent lists, not caches. The controller must never lower used below
// what is stored.
package resourcequota

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/accounting"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/quota"
)

const (
	// every is how often a quota is counted if no event causes it. The value is
	// Kubernetes' default.
	every = 5 * time.Minute
	// recheck is when a quota is counted again after usage was changed. A write that read the
	// period just before its end may have been charged just after the count, and twice.
	recheck = 5 * time.Second
	// pause is the minimum time between two counts of a quota.
	pause = 500 * time.Millisecond
)

type reconciler struct {
	*cluster.Cluster

	ResourceQuotas *client.Cache[*corev1.ResourceQuota]

	quotas client.Resource[*corev1.ResourceQuota]
	writes *controller.Writes
	kinds  map[schema.GroupResource]*client.Kind
	now    func() time.Time
	end    func(context.Context) error // of the accounting period

	mu      sync.Mutex
	counted map[controller.Key]time.Time // when a quota was last counted
}

// New returns the ResourceQuota controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, ResourceQuotas: cluster.Of[*corev1.ResourceQuota](s, cluster.ByNamespace), quotas: client.For[*corev1.ResourceQuota](s.Client),
		kinds: map[schema.GroupResource]*client.Kind{}, now: time.Now,
		end: accounting.New(s.Client).End, counted: map[controller.Key]time.Time{},
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

// ofQuota returns the key of a quota that is to be counted: not for a charge, nor for this
// controller's own status update.
func (r *reconciler) ofQuota(ev client.Event[*corev1.ResourceQuota]) []controller.Key {
	if ev.Type == client.Modified && ev.Object.UID == ev.Old.UID && apiequality.Semantic.DeepEqual(ev.Object.Spec, ev.Old.Spec) {
		return nil
	}
	return []controller.Key{client.KeyOf(ev.Object)}
}

// early returns how long to wait before counting a quota again. If it is not positive, the
// quota may be counted now, and the caller must do so.
func (r *reconciler) early(key controller.Key) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	wait := pause - now.Sub(r.counted[key])
	if wait <= 0 {
		r.counted[key] = now
	}
	return wait
}

func (r *reconciler) forget(key controller.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.counted, key)
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	q, ok := r.ResourceQuotas.Get(key.Namespace, key.Name)
	if !ok || q.DeletionTimestamp != nil {
		r.forget(key)
		return controller.Result{}, nil
	}
	if wait := r.early(key); wait > 0 {
		return controller.Result{RequeueAfter: wait}, nil
	}
	again := controller.Result{RequeueAfter: every}
	counted, err := r.count(ctx, q, r.now())
	if err != nil {
		return controller.Result{}, fmt.Errorf("count usage: %w", err)
	}
	if apiequality.Semantic.DeepEqual(Status(q, counted), q.Status) {
		return again, nil
	}
	// Of a quota that has no usage yet nothing was charged.
	if len(q.Status.Used) > 0 {
		if err := r.end(ctx); err != nil {
			return controller.Result{}, fmt.Errorf("end the accounting period: %w", err)
		}
		if counted, err = r.count(ctx, q, r.now()); err != nil {
			return controller.Result{}, fmt.Errorf("count usage: %w", err)
		}
	}
	changed := q.DeepCopy()
	changed.Status = Status(q, counted)
	if apiequality.Semantic.DeepEqual(changed.Status, q.Status) {
		return again, nil
	}
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
	if len(q.Status.Used) > 0 {
		again.RequeueAfter = recheck
	}
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

// Status returns a quota's status after a count.
func Status(q *corev1.ResourceQuota, counted corev1.ResourceList) corev1.ResourceQuotaStatus {
	return corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: counted}
}
