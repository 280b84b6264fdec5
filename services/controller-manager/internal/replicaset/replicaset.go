// Package replicaset keeps the number of pods that a ReplicaSet wants.
//
// It must never decide on a cache that does not yet show its own last writes, or it
// would create or delete pods twice.
package replicaset

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/podtemplate"
	"keelson.dev/services/internal/controller"
)

// burst limits the pods created or deleted in one reconcile, as in Kubernetes.
const burst = 500

type reconciler struct {
	*cluster.Cluster

	sets   client.Resource[*appsv1.ReplicaSet]
	pods   client.Resource[*corev1.Pod]
	writes *controller.Writes
	now    func() time.Time
}

// New returns the ReplicaSet controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, sets: client.For[*appsv1.ReplicaSet](s.Client), pods: client.For[*corev1.Pod](s.Client),
		writes: controller.NewWrites(s.Pods), now: time.Now,
	}
	return controller.Controller{
		Name: "replicaset", Workers: 5, Reconcile: r.reconcile, Fresh: r.writes.Fresh,
		Sources: []controller.Source{
			controller.Objects(s.ReplicaSets),
			controller.From(s.Pods, r.ofPod),
		},
	}
}

// ofPod maps a pod event to the pod's controllers before and after, and to the sets
// that could adopt it.
func (r *reconciler) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	keys := controllers(nil, ev.Object)
	if ev.Old != nil {
		keys = controllers(keys, ev.Old)
	}
	if len(keys) > 0 || ev.Type == client.Deleted || metav1.GetControllerOfNoCopy(ev.Object) != nil {
		return keys
	}
	for _, rs := range r.ReplicaSets.ByIndex(cluster.ByNamespace, ev.Object.Namespace) {
		if s, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil && !s.Empty() && s.Matches(labels.Set(ev.Object.Labels)) {
			keys = append(keys, client.KeyOf(rs))
		}
	}
	return keys
}

func controllers(keys []controller.Key, p *corev1.Pod) []controller.Key {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return keys
	}
	key := controller.Key{Namespace: p.Namespace, Name: ref.Name}
	for _, k := range keys {
		if k == key {
			return keys
		}
	}
	return append(keys, key)
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	rs, ok := r.ReplicaSets.Get(key.Namespace, key.Name)
	if !ok {
		return controller.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		return controller.Result{}, nil // validation keeps such an object out.
	}
	pods, err := r.claim(ctx, rs, selector)
	if err != nil {
		return controller.Result{}, err
	}
	var manageErr error
	now := r.now()
	if rs.DeletionTimestamp == nil {
		manageErr = r.manage(ctx, rs, Decide(rs, pods, r.related(rs), now))
	}
	status, wait := Status(rs, pods, manageErr, now)
	if !reflect.DeepEqual(status, rs.Status) {
		next := rs.DeepCopy()
		next.Status = status
		if _, err := r.sets.UpdateStatus(ctx, next); err != nil && !apierrors.IsNotFound(err) {
			return controller.Result{}, errors.Join(manageErr, fmt.Errorf("status: %w", err))
		}
	}
	return controller.Result{RequeueAfter: wait}, manageErr
}

// claim adopts and releases pods and returns those that belong to the set.
func (r *reconciler) claim(ctx context.Context, rs *appsv1.ReplicaSet, selector labels.Selector) ([]*corev1.Pod, error) {
	claims := owner.Claim(rs, selector, r.Pods.ByIndex(cluster.ByController, string(rs.UID)), r.Pods.ByIndex(cluster.ByOrphanage, rs.Namespace))
	for _, p := range claims.Release {
		if _, err := r.pods.Patch(ctx, p.Namespace, p.Name, types.StrategicMergePatchType, owner.ReleasePatch(rs.UID, p.UID)); ignorable(err) != nil {
			return nil, fmt.Errorf("release pod %s: %w", p.Name, err)
		}
	}
	adopted := false
	for _, p := range claims.Adopt {
		if !podstate.Active(p) {
			continue
		}
		if !adopted {
			// The cache may not know yet that the set is being deleted.
			live, err := r.sets.Get(ctx, rs.Namespace, rs.Name)
			if err != nil || live.UID != rs.UID || live.DeletionTimestamp != nil {
				return claims.Keep, ignorable(err)
			}
		}
		adopted = true
		got, err := r.pods.Patch(ctx, p.Namespace, p.Name, types.StrategicMergePatchType, owner.AdoptPatch(rs, p.UID))
		if ignorable(err) != nil {
			return nil, fmt.Errorf("adopt pod %s: %w", p.Name, err)
		}
		if err == nil {
			r.writes.Wrote(client.KeyOf(rs), got.ResourceVersion)
			claims.Keep = append(claims.Keep, p)
		}
	}
	return claims.Keep, nil
}

// ignorable returns nil for errors about an object that is gone or was replaced.
func ignorable(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

// related returns the pods of all sets with the same controller, because the sets of a
// rollout share nodes.
func (r *reconciler) related(rs *appsv1.ReplicaSet) []*corev1.Pod {
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil {
		return r.Pods.ByIndex(cluster.ByController, string(rs.UID))
	}
	var out []*corev1.Pod
	for _, sibling := range r.ReplicaSets.ByIndex(cluster.ByController, string(ref.UID)) {
		out = append(out, r.Pods.ByIndex(cluster.ByController, string(sibling.UID))...)
	}
	return out
}

// manage creates or deletes the pods that were decided on.
func (r *reconciler) manage(ctx context.Context, rs *appsv1.ReplicaSet, d Decision) error {
	var (
		done podtemplate.Result
		err  error
	)
	switch {
	case d.Create > 0:
		pods := make([]*corev1.Pod, d.Create)
		for i := range pods {
			pods[i] = podtemplate.Pod(&rs.Spec.Template, rs)
		}
		done, err = podtemplate.Create(ctx, r.Cluster, rs, pods)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			err = nil
		}
	case len(d.Delete) > 0:
		done, err = podtemplate.Delete(ctx, r.Cluster, rs, d.Delete)
	}
	for _, rv := range done.ResourceVersions {
		r.writes.Wrote(client.KeyOf(rs), rv)
	}
	return err
}
