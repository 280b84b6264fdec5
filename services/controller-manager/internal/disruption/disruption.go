// Package disruption keeps the status of PodDisruptionBudgets: how many of their pods
// may be evicted now.
//
// For an eviction the apiserver decrements status.disruptionsAllowed and adds the pod to
// status.disruptedPods in one conditional write. This controller likewise writes a
// status only over the version that it was computed from. It must never allow an
// eviction that would leave fewer healthy pods than the budget requires: an evicted pod
// counts as lost until it is gone, or for two minutes if nothing deletes it. Before the
// controller gives up waiting, it ends the accounting period (see package quota of
// services/internal) and reads the pod, so that an eviction whose delete is still in
// flight does not follow.
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
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/accounting"
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
	end     func(context.Context) error // of the accounting period
}

// New returns the controller of PodDisruptionBudgets.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, DisruptionBudgets: cluster.Of[*policyv1.PodDisruptionBudget](s, cluster.ByNamespace),
		Pods: cluster.Of[*corev1.Pod](s, cluster.ByNamespace), Deployments: cluster.Of[*appsv1.Deployment](s), ReplicaSets: cluster.Of[*appsv1.ReplicaSet](s),
		StatefulSets: cluster.Of[*appsv1.StatefulSet](s), ReplicationControllers: cluster.Of[*corev1.ReplicationController](s),
		budgets: client.For[*policyv1.PodDisruptionBudget](s.Client), now: time.Now,
		end: accounting.New(s.Client).End,
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
	plan := Plan(b, pods, r.scales(ctx), r.now())
	if still, err := r.stillThere(ctx, plan.GivenUp); err != nil || !still {
		return controller.Result{RequeueAfter: time.Second}, err
	}
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

// stillThere reports whether the pods exist and are not being deleted. Their evictions, if
// any is still in flight, fail then and are charged again.
func (r *reconciler) stillThere(ctx context.Context, pods []*corev1.Pod) (bool, error) {
	if len(pods) == 0 {
		return true, nil
	}
	if err := r.end(ctx); err != nil {
		return false, fmt.Errorf("end the accounting period: %w", err)
	}
	for _, p := range pods {
		live, err := client.For[*corev1.Pod](r.Client).Get(ctx, p.Namespace, p.Name)
		if apierrors.IsNotFound(err) || err == nil && (live.UID != p.UID || live.DeletionTimestamp != nil) {
			return false, nil // the cache will show it
		}
		if err != nil {
			return false, fmt.Errorf("pod %s: %w", p.Name, err)
		}
	}
	return true, nil
}

// scales returns a function that looks up how many pods a pod's controller wants. It asks
// once for each controller.
func (r *reconciler) scales(ctx context.Context) Scales {
	type result struct {
		scale Scale
		err   error
	}
	known := map[types.UID]result{}
	return func(p *corev1.Pod) (Scale, error) {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			return Scale{}, nil
		}
		got, ok := known[ref.UID]
		if !ok {
			if got.scale = r.cached(p.Namespace, ref); got.scale.UID == "" {
				got.scale, got.err = r.live(ctx, p.Namespace, ref)
			}
			known[ref.UID] = got
		}
		if got.err == nil && got.scale.UID == "" {
			return Scale{}, fmt.Errorf("found no controllers for pod %q", p.Name)
		}
		return got.scale, got.err
	}
}

// cached looks a controller up in the caches. The result is empty if it is not there or is
// of another kind. A ReplicaSet of a Deployment counts as the Deployment.
func (r *reconciler) cached(namespace string, ref *metav1.OwnerReference) Scale {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return Scale{} // live reports it
	}
	switch (schema.GroupKind{Group: gv.Group, Kind: ref.Kind}) {
	case schema.GroupKind{Group: appsv1.GroupName, Kind: "ReplicaSet"}:
		rs, ok := r.ReplicaSets.Get(namespace, ref.Name)
		if !ok || rs.UID != ref.UID {
			return Scale{}
		}
		up := metav1.GetControllerOfNoCopy(rs)
		if up == nil || up.Kind != "Deployment" {
			return Scale{rs.UID, wanted(rs.Spec.Replicas)}
		}
		if gv, err := schema.ParseGroupVersion(up.APIVersion); err == nil && gv.Group == appsv1.GroupName {
			if d, ok := r.Deployments.Get(namespace, up.Name); ok && d.UID == up.UID {
				return Scale{d.UID, wanted(d.Spec.Replicas)}
			}
		}
	case schema.GroupKind{Group: appsv1.GroupName, Kind: "StatefulSet"}:
		if s, ok := r.StatefulSets.Get(namespace, ref.Name); ok && s.UID == ref.UID {
			return Scale{s.UID, wanted(s.Spec.Replicas)}
		}
	case schema.GroupKind{Kind: "ReplicationController"}:
		if rc, ok := r.ReplicationControllers.Get(namespace, ref.Name); ok && rc.UID == ref.UID {
			return Scale{rc.UID, wanted(rc.Spec.Replicas)}
		}
	}
	return Scale{}
}

// live reads a controller's scale subresource. The result is empty if the controller does
// not exist. The errors are Kubernetes'; they end up in the budget's condition.
func (r *reconciler) live(ctx context.Context, namespace string, ref *metav1.OwnerReference) (Scale, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return Scale{}, err
	}
	k := client.KindFor(gv.WithKind(ref.Kind))
	if k == nil {
		return Scale{}, &meta.NoKindMatchError{GroupKind: schema.GroupKind{Group: gv.Group, Kind: ref.Kind}, SearchedVersions: []string{gv.Version}}
	}
	gr := k.GVR().GroupResource()
	if !scalable[gr] {
		return Scale{}, fmt.Errorf("%s does not implement the scale subresource", gr)
	}
	s, err := client.Metadata(r.Client, k).GetScale(ctx, namespace, ref.Name)
	switch {
	case apierrors.IsNotFound(err):
		return Scale{}, nil
	case err != nil:
		return Scale{}, err
	case s.UID != ref.UID:
		return Scale{}, nil
	}
	return Scale{s.UID, int(s.Spec.Replicas)}, nil
}

// scalable lists the resources with a scale subresource.
var scalable = map[schema.GroupResource]bool{
	{Group: appsv1.GroupName, Resource: "deployments"}:  true,
	{Group: appsv1.GroupName, Resource: "replicasets"}:  true,
	{Group: appsv1.GroupName, Resource: "statefulsets"}: true,
	{Resource: "replicationcontrollers"}:                true,
}

func wanted(n *int32) int {
	if n == nil {
		return 1
	}
	return int(*n)
}
