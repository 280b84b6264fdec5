// Package disruption keeps the status of PodDisruptionBudgets: how many of their pods
// may be evicted now.
//
// For an eviction the apiserver decrements status.disruptionsAllowed and adds the pod to
// status.disruptedPods in one conditional write. This controller likewise writes a
// status only over the version that it was computed from. It must never allow an
// eviction that would leave fewer healthy pods than the budget requires: an evicted pod
// counts as lost until it is gone, or for two minutes if nothing deletes it.
package disruption

import (
	"context"
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	DisruptionBudgets      *client.Cache[*policyv1.PodDisruptionBudget]
	Pods                   *client.Cache[*corev1.Pod]
	Deployments            *client.Cache[*appsv1.Deployment]
	ReplicaSets            *client.Cache[*appsv1.ReplicaSet]
	StatefulSets           *client.Cache[*appsv1.StatefulSet]
	ReplicationControllers *client.Cache[*corev1.ReplicationController]

	budgets client.Resource[*policyv1.PodDisruptionBudget]
	writes  *controller.Writes
	now     func() time.Time
}

// New returns the controller of PodDisruptionBudgets.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, DisruptionBudgets: cluster.Of[*policyv1.PodDisruptionBudget](s, cluster.ByNamespace),
		Pods: cluster.Of[*corev1.Pod](s, cluster.ByNamespace), Deployments: cluster.Of[*appsv1.Deployment](s), ReplicaSets: cluster.Of[*appsv1.ReplicaSet](s),
		StatefulSets: cluster.Of[*appsv1.StatefulSet](s), ReplicationControllers: cluster.Of[*corev1.ReplicationController](s),
		budgets: client.For[*policyv1.PodDisruptionBudget](s.Client), now: time.Now,
	}
	r.writes = controller.NewWrites(r.DisruptionBudgets)
	return controller.Controller{
		Name: "disruption", Workers: 2, Reconcile: r.reconcile, Fresh: r.writes.Fresh,
		Sources: []controller.Source{
			controller.Objects(r.DisruptionBudgets),
			controller.From(r.Pods, r.ofPod),
		},
		Synced: []<-chan struct{}{
			r.Deployments.Synced(), r.ReplicaSets.Synced(), r.StatefulSets.Synced(), r.ReplicationControllers.Synced(),
		},
	}
}

// ofPod maps a pod event to the budgets that select the pod, or selected it before.
func (r *reconciler) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	var keys []controller.Key
	for _, b := range r.DisruptionBudgets.ByIndex(cluster.ByNamespace, ev.Object.Namespace) {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue
		}
		if selector.Matches(labels.Set(ev.Object.Labels)) || ev.Type == client.Modified && selector.Matches(labels.Set(ev.Old.Labels)) {
			keys = append(keys, client.KeyOf(b))
		}
	}
	return keys
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	b, ok := r.DisruptionBudgets.Get(key.Namespace, key.Name)
	if !ok || b.DeletionTimestamp != nil {
		return controller.Result{}, nil
	}
	// A nil selector selects nothing, and an empty one all pods of the namespace.
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return controller.Result{}, nil // validation rejects such a selector
	}
	var pods []*corev1.Pod
	for _, p := range r.Pods.ByIndex(cluster.ByNamespace, b.Namespace) {
		if selector.Matches(labels.Set(p.Labels)) {
			pods = append(pods, p)
		}
	}
	plan := Plan(b, pods, r.scales(), r.now())
	for _, e := range plan.Events {
		var about client.Object = b
		if e.Pod != nil {
			about = e.Pod
		}
		if e.Warning {
			r.Events.Warning(ctx, about, e.Reason, "%s", e.Message)
		} else {
			r.Events.Normal(ctx, about, e.Reason, "%s", e.Message)
		}
	}
	if !reflect.DeepEqual(plan.Status, b.Status) {
		next := b.DeepCopy()
		next.Status = plan.Status
		got, err := r.budgets.UpdateStatus(ctx, next)
		if apierrors.IsNotFound(err) {
			return controller.Result{}, nil
		}
		if err != nil {
			return controller.Result{}, fmt.Errorf("update status: %w", err)
		}
		r.writes.Wrote(key, got.ResourceVersion)
	}
	return controller.Result{RequeueAfter: plan.RequeueAfter}, nil
}

// scales returns a function that looks up how many pods a pod's controller wants.
func (r *reconciler) scales() Scales {
	return func(p *corev1.Pod) (Scale, error) {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			return Scale{}, nil
		}
		switch ref.Kind {
		case "ReplicaSet":
			rs, ok := r.ReplicaSets.Get(p.Namespace, ref.Name)
			if !ok || rs.UID != ref.UID {
				return Scale{}, nil
			}
			if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" {
				if d, ok := r.Deployments.Get(p.Namespace, up.Name); ok && d.UID == up.UID {
					return Scale{d.UID, wanted(d.Spec.Replicas)}, nil
				}
			}
			return Scale{rs.UID, wanted(rs.Spec.Replicas)}, nil
		case "StatefulSet":
			if s, ok := r.StatefulSets.Get(p.Namespace, ref.Name); ok && s.UID == ref.UID {
				return Scale{s.UID, wanted(s.Spec.Replicas)}, nil
			}
			return Scale{}, nil
		case "ReplicationController":
			if rc, ok := r.ReplicationControllers.Get(p.Namespace, ref.Name); ok && rc.UID == ref.UID {
				return Scale{rc.UID, wanted(rc.Spec.Replicas)}, nil
			}
			return Scale{}, nil
		}
		return Scale{}, fmt.Errorf("%s %s of pod %s does not implement the scale subresource", ref.Kind, ref.Name, p.Name)
	}
}

func wanted(n *int32) int {
	if n == nil {
		return 1
	}
	return int(*n)
}
