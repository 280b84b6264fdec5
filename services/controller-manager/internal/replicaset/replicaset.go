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

	ReplicaSets *client.Cache[*appsv1.ReplicaSet]

	sets client.Resource[*appsv1.ReplicaSet]
	pods *owner.Claimer[*appsv1.ReplicaSet, *corev1.Pod]
	now  func() time.Time
}

// New returns the ReplicaSet controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, ReplicaSets: cluster.Of[*appsv1.ReplicaSet](s, cluster.ByController), sets: client.For[*appsv1.ReplicaSet](s.Client),
		pods: owner.NewClaimer[*appsv1.ReplicaSet, *corev1.Pod](s, func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector }),
		now:  time.Now,
	}
	r.pods.Adoptable = func(_ *appsv1.ReplicaSet, p *corev1.Pod) bool { return podstate.Active(p) }
	return controller.Controller{
		Name: "replicaset", Workers: 5, Reconcile: r.reconcile, Fresh: r.pods.Writes.Fresh,
		Sources: []controller.Source{
			controller.Objects(r.ReplicaSets),
			r.pods.Source(),
		},
	}
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
	pods, err := r.pods.Claim(ctx, rs, selector)
	if err != nil {
		return controller.Result{}, err
	}
	var manageErr error
	now := r.now()
	if rs.DeletionTimestamp == nil {
		manageErr = r.manage(ctx, rs, Plan(rs, pods, r.related(rs), now))
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

// related returns the pods of all sets with the same controller, because the sets of a
// rollout share nodes.
func (r *reconciler) related(rs *appsv1.ReplicaSet) []*corev1.Pod {
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil {
		return r.pods.Owned(rs)
	}
	var out []*corev1.Pod
	for _, sibling := range r.ReplicaSets.ByIndex(cluster.ByController, string(ref.UID)) {
		out = append(out, r.pods.Owned(sibling)...)
	}
	return out
}

// manage creates or deletes the pods that were decided on.
func (r *reconciler) manage(ctx context.Context, rs *appsv1.ReplicaSet, d Actions) error {
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
		r.pods.Writes.Wrote(client.KeyOf(rs), rv)
	}
	return err
}
