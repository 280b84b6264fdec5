// Package deployment rolls a Deployment's template out over ReplicaSets.
//
// Decisions are in plan.go and its neighbours: pure functions of the deployment
// and its sets. It must never let fewer pods be available, or more exist, than
// maxUnavailable and maxSurge allow.
package deployment

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	Deployments *client.Cache[*appsv1.Deployment]
	Pods        *client.Cache[*corev1.Pod]

	deployments client.Resource[*appsv1.Deployment]
	sets        *owner.Claimer[*appsv1.Deployment, *appsv1.ReplicaSet]
	ownWrites   *controller.Writes
	now         func() time.Time
}

// New returns the Deployment controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, Deployments: cluster.Of[*appsv1.Deployment](s), Pods: cluster.Of[*corev1.Pod](s, cluster.ByController),
		deployments: client.For[*appsv1.Deployment](s.Client),
		sets:        owner.NewClaimer[*appsv1.Deployment, *appsv1.ReplicaSet](s, func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector }),
		now:         time.Now,
	}
	r.ownWrites = controller.NewWrites(r.Deployments)
	return controller.Controller{
		Name: "deployment", Workers: 5, Reconcile: r.reconcile,
		Fresh: func(key controller.Key) error { return errors.Join(r.sets.Writes.Fresh(key), r.ownWrites.Fresh(key)) },
		Sources: []controller.Source{
			controller.Objects(r.Deployments),
			r.sets.Source(),
			controller.From(r.Pods, r.ofPod),
		},
	}
}

// ofPod maps a pod event to the deployment with strategy Recreate that waits for the
// pod to end.
func (r *reconciler) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	ended := ev.Type == client.Deleted || ev.Old != nil && podstate.Finished(ev.Object) && !podstate.Finished(ev.Old)
	ref := metav1.GetControllerOfNoCopy(ev.Object)
	if !ended || ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	rs, ok := r.sets.Cache.Get(ev.Object.Namespace, ref.Name)
	if !ok {
		return nil
	}
	ref = metav1.GetControllerOfNoCopy(rs)
	if ref == nil || ref.Kind != "Deployment" {
		return nil
	}
	d, ok := r.Deployments.Get(rs.Namespace, ref.Name)
	if !ok || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []controller.Key{client.KeyOf(d)}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	d, ok := r.Deployments.Get(key.Namespace, key.Name)
	if !ok {
		return controller.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil || selector.Empty() {
		return controller.Result{}, nil // validation keeps such an object out.
	}
	sets, err := r.sets.Claim(ctx, d, selector)
	if err != nil {
		return controller.Result{}, err
	}
	plan := Plan(d, sets, r.podsRunning, r.now())
	if plan.Create != nil || plan.Revision != "" && plan.Revision != d.Annotations[RevisionAnnotation] {
		if err := r.sets.Current(ctx, d); err != nil {
			return controller.Result{}, err
		}
	}
	return controller.Result{RequeueAfter: plan.RequeueAfter}, r.carryOut(ctx, d, plan)
}

// podsRunning reports whether a set has a pod that has not ended, including one that is
// being deleted.
func (r *reconciler) podsRunning(rs *appsv1.ReplicaSet) bool {
	return slices.ContainsFunc(r.Pods.ByIndex(cluster.ByController, string(rs.UID)), func(p *corev1.Pod) bool {
		return !podstate.Finished(p)
	})
}

// carryOut writes the plan: sets before the status, which reports them.
func (r *reconciler) carryOut(ctx context.Context, d *appsv1.Deployment, plan Actions) error {
	key := client.KeyOf(d)
	var failure error
	if plan.Create != nil {
		created, err := r.sets.Objects.Create(ctx, plan.Create)
		switch {
		case apierrors.IsAlreadyExists(err):
			return r.collided(ctx, d, plan.Create)
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			return nil
		case err != nil:
			failure = fmt.Errorf("create replica set %s: %w", plan.Create.Name, err)
			plan.Status = creationFailed(d, plan.Status, err, r.now())
			r.Events.Warning(ctx, d, "ReplicaSetCreateError", "Failed to create new replica set %q: %v", plan.Create.Name, err)
		default:
			r.sets.Writes.Wrote(key, created.ResourceVersion)
		}
	}
	if failure == nil {
		failure = r.changeSets(ctx, key, plan)
	}
	for _, e := range plan.Events {
		if failure == nil {
			r.Events.Normal(ctx, d, e.Reason, "%s", e.Message)
		}
	}
	return errors.Join(failure, r.writeOwn(ctx, d, plan))
}

func (r *reconciler) changeSets(ctx context.Context, key controller.Key, plan Actions) error {
	var failure error
	for _, rs := range plan.Update {
		got, err := r.sets.Objects.Update(ctx, rs)
		if err != nil {
			// The rest of the plan depends on this write.
			return fmt.Errorf("update replica set %s: %w", rs.Name, err)
		}
		r.sets.Writes.Wrote(key, got.ResourceVersion)
	}
	for _, rs := range plan.Delete {
		if err := r.sets.Objects.Delete(ctx, rs.Namespace, rs.Name, client.UID(rs.UID)); err != nil && !apierrors.IsNotFound(err) && failure == nil {
			failure = fmt.Errorf("delete replica set %s: %w", rs.Name, err)
		}
	}
	return failure
}

// collided handles an existing set of the new set's name: either our own, which the
// cache will show, or another's, for which the next attempt picks a different name.
func (r *reconciler) collided(ctx context.Context, d *appsv1.Deployment, want *appsv1.ReplicaSet) error {
	got, err := r.sets.Objects.Get(ctx, want.Namespace, want.Name)
	if err != nil {
		return fmt.Errorf("replica set %s: %w", want.Name, err)
	}
	if ref := metav1.GetControllerOf(got); ref != nil && ref.UID == d.UID && sameTemplate(&got.Spec.Template, &d.Spec.Template) {
		r.sets.Writes.Wrote(client.KeyOf(d), got.ResourceVersion)
		return controller.ErrStale
	}
	next := d.DeepCopy()
	collisions := int32(1)
	if d.Status.CollisionCount != nil {
		collisions += *d.Status.CollisionCount
	}
	next.Status.CollisionCount = &collisions
	if next, err = r.deployments.UpdateStatus(ctx, next); err != nil {
		return fmt.Errorf("update status.collisionCount: %w", err)
	}
	r.ownWrites.Wrote(client.KeyOf(d), next.ResourceVersion)
	return controller.ErrStale
}

// writeOwn writes the deployment's revision and status, where they differ, in one write: the
// subresource takes annotations as well, and unlike a write of the whole deployment does not
// make a new generation of a changed one.
func (r *reconciler) writeOwn(ctx context.Context, d *appsv1.Deployment, plan Actions) error {
	revised := plan.Revision != "" && d.Annotations[RevisionAnnotation] != plan.Revision
	if !revised && reflect.DeepEqual(plan.Status, d.Status) {
		return nil
	}
	next := d.DeepCopy()
	next.Status = plan.Status
	if revised {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, RevisionAnnotation, plan.Revision)
	}
	got, err := r.deployments.UpdateStatus(ctx, next)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	r.ownWrites.Wrote(client.KeyOf(d), got.ResourceVersion)
	return nil
}
