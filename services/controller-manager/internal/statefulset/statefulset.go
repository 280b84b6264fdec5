// Package statefulset runs numbered pods that keep their name, DNS name and volumes
// when they are replaced.
//
// What to do next is a pure function of the set, its pods and its claims (plan.go). A
// pod is never created while another of its name exists, even one that is terminating,
// because the server refuses the name. So two pods of the same identity can run at once
// only if a pod is force-deleted while its node still runs it. The controller must never
// delete a claim: the retention policy makes the set or a pod the claim's owner, and the
// garbage collector deletes the claim with its owner.
package statefulset

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
	"keelson.dev/services/controller-manager/internal/history"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/podtemplate"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	StatefulSets *client.Cache[*appsv1.StatefulSet]
	Claims       *client.Cache[*corev1.PersistentVolumeClaim]

	sets        client.Resource[*appsv1.StatefulSet]
	claims      client.Resource[*corev1.PersistentVolumeClaim]
	pods        *owner.Claimer[*appsv1.StatefulSet, *corev1.Pod]
	revisions   *owner.Claimer[*appsv1.StatefulSet, *appsv1.ControllerRevision]
	history     history.Reviser[*appsv1.StatefulSet]
	ownWrites   *controller.Writes
	claimWrites *controller.Writes
	now         func() time.Time
}

// New returns the StatefulSet controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, StatefulSets: cluster.Of[*appsv1.StatefulSet](s, cluster.ByNamespace), Claims: cluster.Of[*corev1.PersistentVolumeClaim](s),
		sets:      client.For[*appsv1.StatefulSet](s.Client),
		claims:    client.For[*corev1.PersistentVolumeClaim](s.Client),
		pods:      owner.NewClaimer[*appsv1.StatefulSet, *corev1.Pod](s, selectorOf),
		revisions: owner.NewClaimer[*appsv1.StatefulSet, *appsv1.ControllerRevision](s, selectorOf),
		now:       time.Now,
	}
	r.pods.Member = isMember
	r.ownWrites, r.claimWrites = controller.NewWrites(r.StatefulSets), controller.NewWrites(r.Claims)
	r.history = history.Reviser[*appsv1.StatefulSet]{
		Label: history.HashLabel, Revisions: r.revisions, Owners: r.sets, Writes: r.ownWrites,
		Parts: func(o *appsv1.StatefulSet) (*corev1.PodTemplateSpec, **int32) {
			return &o.Spec.Template, &o.Status.CollisionCount
		},
	}
	return controller.Controller{
		Name: "statefulset", Workers: 5, Reconcile: r.reconcile,
		Fresh: func(key controller.Key) error {
			return errors.Join(r.pods.Writes.Fresh(key), r.revisions.Writes.Fresh(key), r.ownWrites.Fresh(key), r.claimWrites.Fresh(key))
		},
		Sources: []controller.Source{
			controller.Objects(r.StatefulSets),
			r.pods.Source(),
			r.revisions.Source(),
			controller.From(r.Claims, r.ofClaim),
		},
	}
}

func (r *reconciler) inNamespace(namespace string) []*appsv1.StatefulSet {
	return r.StatefulSets.ByIndex(cluster.ByNamespace, namespace)
}

func selectorOf(set *appsv1.StatefulSet) *metav1.LabelSelector { return set.Spec.Selector }

// ofClaim maps a claim event to the StatefulSets that name the claim, one of which may
// be waiting for the claim of an earlier pod to be deleted.
func (r *reconciler) ofClaim(ev client.Event[*corev1.PersistentVolumeClaim]) []controller.Key {
	if ev.Type == client.Modified && (ev.Old.DeletionTimestamp == nil) == (ev.Object.DeletionTimestamp == nil) {
		return nil
	}
	var keys []controller.Key
	for _, set := range r.inNamespace(ev.Object.Namespace) {
		if len(set.Spec.VolumeClaimTemplates) > 0 && isClaimOf(set, ev.Object.Name) {
			keys = append(keys, client.KeyOf(set))
		}
	}
	return keys
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	set, ok := r.StatefulSets.Get(key.Namespace, key.Name)
	if !ok {
		return controller.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || selector.Empty() {
		return controller.Result{}, nil // validation rejects such a selector
	}
	state, err := r.observe(ctx, set, selector)
	if err != nil {
		return controller.Result{}, err
	}
	if state.Update, err = r.history.Revise(ctx, set, state.Revisions); err != nil {
		return controller.Result{}, err
	}
	plan, err := Plan(set, state)
	if err != nil {
		return controller.Result{}, err
	}
	return controller.Result{RequeueAfter: plan.RequeueAfter}, r.carryOut(ctx, set, plan)
}

// observe claims the set's pods and revisions and returns the input of Plan.
func (r *reconciler) observe(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector) (State, error) {
	pods, err := r.pods.Claim(ctx, set, selector)
	if err != nil {
		return State{}, err
	}
	revisions, err := r.revisions.Claim(ctx, set, selector)
	if err != nil {
		return State{}, err
	}
	return State{
		Pods: pods, Revisions: revisions, Now: r.now(),
		Claim: func(name string) *corev1.PersistentVolumeClaim {
			c, _ := r.Claims.Get(set.Namespace, name)
			return c
		},
	}, nil
}

// carryOut writes the plan: claims before the pods that mount them, and the status
// last.
func (r *reconciler) carryOut(ctx context.Context, set *appsv1.StatefulSet, plan Actions) error {
	failure := r.changeClaims(ctx, set, plan)
	if failure == nil {
		failure = r.changePods(ctx, set, plan)
	}
	for _, old := range plan.Forget {
		if err := r.revisions.Objects.Delete(ctx, old.Namespace, old.Name, client.UID(old.UID)); err != nil && !apierrors.IsNotFound(err) {
			failure = errors.Join(failure, fmt.Errorf("delete revision %s: %w", old.Name, err))
		}
	}
	if reflect.DeepEqual(plan.Status, set.Status) {
		return failure
	}
	next := set.DeepCopy()
	next.Status = plan.Status
	got, err := r.sets.UpdateStatus(ctx, next)
	if apierrors.IsNotFound(err) {
		return failure
	}
	if err != nil {
		return errors.Join(failure, fmt.Errorf("status: %w", err))
	}
	r.ownWrites.Wrote(client.KeyOf(set), got.ResourceVersion)
	return failure
}

func (r *reconciler) changeClaims(ctx context.Context, set *appsv1.StatefulSet, plan Actions) error {
	key := client.KeyOf(set)
	for _, c := range plan.CreateClaims {
		got, err := r.claims.Create(ctx, c)
		switch {
		case apierrors.IsAlreadyExists(err):
		case err != nil:
			r.Events.Warning(ctx, set, "FailedCreate", "create Claim %s for Pod %s in StatefulSet %s failed error: %s", c.Name, podOfClaim(set, c.Name), set.Name, err)
			return fmt.Errorf("create claim %s: %w", c.Name, err)
		default:
			r.claimWrites.Wrote(key, got.ResourceVersion)
			r.Events.Normal(ctx, set, "SuccessfulCreate", "create Claim %s Pod %s in StatefulSet %s success", c.Name, podOfClaim(set, c.Name), set.Name)
		}
	}
	for _, c := range plan.UpdateClaims {
		got, err := r.claims.Update(ctx, c)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return fmt.Errorf("update owners of claim %s: %w", c.Name, err)
		default:
			r.claimWrites.Wrote(key, got.ResourceVersion)
		}
	}
	return nil
}

func (r *reconciler) changePods(ctx context.Context, set *appsv1.StatefulSet, plan Actions) error {
	key := client.KeyOf(set)
	for _, e := range plan.Events {
		r.Events.Warning(ctx, set, e.Reason, "%s", e.Message)
	}
	var failure error
	if len(plan.Label) > 0 {
		failure = r.label(ctx, set, plan.Label)
	}
	if len(plan.Delete) > 0 {
		done, err := podtemplate.DeleteWith(ctx, r.Cluster, set, plan.Delete, message(set))
		r.wrote(key, done)
		failure = errors.Join(failure, err)
	}
	if len(plan.Create) > 0 {
		done, err := podtemplate.CreateWith(ctx, r.Cluster, set, plan.Create, message(set))
		r.wrote(key, done)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			err = nil
		}
		failure = errors.Join(failure, err)
	}
	return failure
}

// message returns the texts of the events of a set's pods. They are Kubernetes'.
func message(set *appsv1.StatefulSet) podtemplate.Message {
	return func(verb string, p *corev1.Pod, err error) string {
		if err != nil {
			return fmt.Sprintf("%s Pod %s in StatefulSet %s failed error: %s", verb, p.Name, set.Name, err)
		}
		return fmt.Sprintf("%s Pod %s in StatefulSet %s successful", verb, p.Name, set.Name)
	}
}

// label adds the identity labels to pods that lack them.
func (r *reconciler) label(ctx context.Context, set *appsv1.StatefulSet, pods []*corev1.Pod) error {
	var failure error
	text := message(set)
	for _, p := range pods {
		got, err := r.pods.Objects.Patch(ctx, p.Namespace, p.Name, identityPatchType, identityPatch(p))
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			r.Events.Warning(ctx, set, "FailedUpdate", "%s", text("update", p, err))
			failure = errors.Join(failure, fmt.Errorf("label pod %s: %w", p.Name, err))
		default:
			r.Events.Normal(ctx, set, "SuccessfulUpdate", "%s", text("update", p, nil))
			r.pods.Writes.Wrote(client.KeyOf(set), got.ResourceVersion)
		}
	}
	return failure
}

func (r *reconciler) wrote(key controller.Key, done podtemplate.Result) {
	for _, rv := range done.ResourceVersions {
		r.pods.Writes.Wrote(key, rv)
	}
}
