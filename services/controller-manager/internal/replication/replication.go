// Package replication keeps the number of pods that a ReplicationController wants. It
// uses package replicaset's decisions: the two kinds differ only in the form of their
// selectors.
//
// The controller must never decide on a cache that does not yet show its own last
// writes, or it would create or delete pods twice.
package replication

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

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/podtemplate"
	"keelson.dev/services/controller-manager/internal/replicaset"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	ReplicationControllers *client.Cache[*corev1.ReplicationController]

	controllers client.Resource[*corev1.ReplicationController]
	pods        *owner.Claimer[*corev1.ReplicationController, *corev1.Pod]
	now         func() time.Time
}

// New returns the ReplicationController controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, ReplicationControllers: cluster.Of[*corev1.ReplicationController](s),
		controllers: client.For[*corev1.ReplicationController](s.Client), now: time.Now,
		pods: owner.NewClaimer[*corev1.ReplicationController, *corev1.Pod](s, selectorOf),
	}
	r.pods.Adoptable = func(_ *corev1.ReplicationController, p *corev1.Pod) bool { return podstate.Active(p) }
	return controller.Controller{
		Name: "replication", Workers: 5, Reconcile: r.reconcile, Fresh: r.pods.Writes.Fresh,
		Sources: []controller.Source{
			controller.Objects(r.ReplicationControllers),
			r.pods.Source(),
		},
	}
}

func selectorOf(rc *corev1.ReplicationController) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	rc, ok := r.ReplicationControllers.Get(key.Namespace, key.Name)
	if !ok || len(rc.Spec.Selector) == 0 || rc.Spec.Template == nil {
		return controller.Result{}, nil // validation rejects objects without a selector or template
	}
	pods, err := r.pods.Claim(ctx, rc, labels.SelectorFromSet(rc.Spec.Selector))
	if err != nil {
		return controller.Result{}, err
	}
	now, rs := r.now(), asReplicaSet(rc)
	var manageErr error
	if rc.DeletionTimestamp == nil {
		manageErr = r.manage(ctx, rc, replicaset.Plan(rs, pods, pods, now))
	}
	status, wait := replicaset.Status(rs, pods, manageErr, now)
	if next := statusOf(status); !reflect.DeepEqual(next, rc.Status) {
		changed := rc.DeepCopy()
		changed.Status = next
		if _, err := r.controllers.UpdateStatus(ctx, changed); err != nil && !apierrors.IsNotFound(err) {
			return controller.Result{}, errors.Join(manageErr, fmt.Errorf("update status: %w", err))
		}
	}
	return controller.Result{RequeueAfter: wait}, manageErr
}

// manage creates or deletes the pods that d asks for.
func (r *reconciler) manage(ctx context.Context, rc *corev1.ReplicationController, d replicaset.Actions) error {
	var (
		done podtemplate.Result
		err  error
	)
	switch {
	case d.Create > 0:
		pods := make([]*corev1.Pod, d.Create)
		for i := range pods {
			pods[i] = podtemplate.Pod(rc.Spec.Template, rc)
		}
		done, err = podtemplate.Create(ctx, r.Cluster, rc, pods)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			err = nil
		}
	case len(d.Delete) > 0:
		done, err = podtemplate.Delete(ctx, r.Cluster, rc, d.Delete)
	}
	for _, rv := range done.ResourceVersions {
		r.pods.Writes.Wrote(client.KeyOf(rc), rv)
	}
	return err
}

// asReplicaSet returns a ReplicaSet with the ReplicationController's spec and conditions.
func asReplicaSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds, Selector: selectorOf(rc), Template: *rc.Spec.Template,
		},
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status, Reason: c.Reason, Message: c.Message, LastTransitionTime: c.LastTransitionTime,
		})
	}
	return rs
}

// statusOf converts a ReplicaSet's status to that of a ReplicationController.
func statusOf(s appsv1.ReplicaSetStatus) corev1.ReplicationControllerStatus {
	out := corev1.ReplicationControllerStatus{
		ObservedGeneration: s.ObservedGeneration, Replicas: s.Replicas, FullyLabeledReplicas: s.FullyLabeledReplicas,
		ReadyReplicas: s.ReadyReplicas, AvailableReplicas: s.AvailableReplicas,
	}
	for _, c := range s.Conditions {
		out.Conditions = append(out.Conditions, corev1.ReplicationControllerCondition{
			Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status, Reason: c.Reason, Message: c.Message, LastTransitionTime: c.LastTransitionTime,
		})
	}
	return out
}
