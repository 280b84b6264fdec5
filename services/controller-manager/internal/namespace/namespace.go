// Package namespace deletes the contents of a namespace that is being deleted, and then
// removes its finalizer.
//
// Pods are deleted first (KEP-5080): the objects that protect or serve them stay until
// they have ended. It must never remove the finalizer while anything is left in the
// namespace, and it checks that on the server, not in a cache.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	Namespaces *client.Cache[*corev1.Namespace]

	namespaces client.Resource[*corev1.Namespace]
	kinds      []*client.Kind
	now        func() time.Time

	mu sync.Mutex
	// unserved holds the kinds that the server does not serve, and until when it is not
	// asked again.
	unserved map[*client.Kind]time.Time
}

// unservedFor is how long a kind that the server does not serve is skipped.
const unservedFor = 5 * time.Minute

// New returns the namespace controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, Namespaces: cluster.Of[*corev1.Namespace](s), namespaces: client.For[*corev1.Namespace](s.Client), kinds: Kinds(), now: time.Now,
		unserved: map[*client.Kind]time.Time{},
	}
	return controller.Controller{
		Name: "namespace", Workers: 5, Reconcile: r.reconcile, Timeout: 5 * time.Minute,
		Sources: []controller.Source{
			controller.Objects(r.Namespaces),
			controller.From(cluster.Of[*corev1.Pod](s), r.ofPod),
		},
	}
}

// Kinds returns the kinds that a namespace may hold, pods first.
func Kinds() []*client.Kind {
	var out []*client.Kind
	for _, k := range client.Kinds() {
		switch {
		case !k.Namespaced || !k.Stored():
		case k.Resource == "pods":
			out = slices.Insert(out, 0, k)
		default:
			out = append(out, k)
		}
	}
	return out
}

// ofPod wakes a namespace that waits for its pods.
func (r *reconciler) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	if ev.Type != client.Deleted {
		return nil
	}
	if ns, ok := r.Namespaces.Get("", ev.Object.Namespace); !ok || ns.DeletionTimestamp == nil {
		return nil
	}
	return []controller.Key{{Name: ev.Object.Namespace}}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	ns, ok := r.Namespaces.Get("", key.Name)
	if !ok || ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return controller.Result{}, nil
	}
	left := r.empty(ctx, ns)
	if err := r.report(ctx, ns, left); err != nil {
		return controller.Result{}, err
	}
	switch {
	case left.failure != nil:
		return controller.Result{}, left.failure
	case left.count() > 0:
		return controller.Result{RequeueAfter: patience(r.now().Sub(ns.DeletionTimestamp.Time))}, nil
	}
	return controller.Result{}, r.finalize(ctx, ns.Name)
}

// patience returns how long to wait for the remaining objects: the longer they have
// been waited for already, the longer.
func patience(waited time.Duration) time.Duration {
	return min(max(waited/4, 200*time.Millisecond), 15*time.Second)
}

// remains describes what is left in a namespace.
type remains struct {
	// objects and finalizers are counts, by resource and by finalizer.
	objects, finalizers map[string]int
	failure             error
}

func (l *remains) count() (n int) {
	for _, c := range l.objects {
		n += c
	}
	return n
}

// empty deletes what can be deleted now and counts what is left.
func (r *reconciler) empty(ctx context.Context, ns *corev1.Namespace) *remains {
	left := &remains{objects: map[string]int{}, finalizers: map[string]int{}}
	for i, k := range r.kinds {
		if r.isUnserved(k) {
			continue
		}
		err := r.emptyKind(ctx, k, ns.Name, left)
		switch {
		case apierrors.IsNotFound(err):
			r.setUnserved(k)
		case apierrors.IsMethodNotSupported(err):
		case err != nil:
			left.failure = errors.Join(left.failure, fmt.Errorf("%s: %w", k.Resource, err))
		}
		// Pods first: the rest stays as long as one runs.
		if i == 0 && left.count() > 0 {
			return left
		}
	}
	return left
}

func (r *reconciler) isUnserved(k *client.Kind) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now().Before(r.unserved[k])
}

func (r *reconciler) setUnserved(k *client.Kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unserved[k] = r.now().Add(unservedFor)
}

func (r *reconciler) emptyKind(ctx context.Context, k *client.Kind, namespace string, left *remains) error {
	objects := client.Metadata(r.Client, k)
	some, _, err := objects.List(ctx, client.ListOptions{Namespace: namespace, Limit: 1})
	if err != nil || len(some) == 0 {
		return err
	}
	if _, err := objects.DeleteCollection(ctx, client.ListOptions{Namespace: namespace}, client.Propagation(metav1.DeletePropagationBackground)); err != nil {
		return err
	}
	for obj, err := range objects.All(ctx, client.ListOptions{Namespace: namespace}) {
		if err != nil {
			return err
		}
		left.objects[resourceName(k)]++
		for _, f := range obj.Finalizers {
			left.finalizers[f]++
		}
	}
	return nil
}

func resourceName(k *client.Kind) string { return k.GVR().GroupResource().String() }

// report writes the conditions that describe what is waited for. A namespace that is
// empty at once gets none.
func (r *reconciler) report(ctx context.Context, ns *corev1.Namespace, left *remains) error {
	if left.failure == nil && left.count() == 0 && len(ns.Status.Conditions) == 0 {
		return nil
	}
	next := ns.DeepCopy()
	if next.Status.Phase = corev1.NamespaceTerminating; !setConditions(&next.Status, left, metav1.NewTime(r.now())) && ns.Status.Phase == next.Status.Phase {
		return nil
	}
	if _, err := r.namespaces.UpdateStatus(ctx, next); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("conditions: %w", err)
	}
	return nil
}

// finalize removes our finalizer from the current version of the object.
func (r *reconciler) finalize(ctx context.Context, name string) error {
	ns, err := r.namespaces.Get(ctx, "", name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finalize: %w", err)
	}
	if ns.DeletionTimestamp == nil {
		return nil
	}
	ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	if _, err := r.namespaces.Update(ctx, ns, client.Subresource("finalize")); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("finalize: %w", err)
	}
	return nil
}
