// Package daemonset runs one pod of a DaemonSet on each node that matches its node
// selector and affinity and whose taints it tolerates.
//
// Each pod is created for one node, named in the pod's required node affinity, and is
// bound by the scheduler. What to create and delete is a pure function of the set, its
// pods and the nodes (plan.go, rolling.go). The controller must never run two pods of
// the same template on a node, and during a rollout it must never take down available
// pods on more nodes than maxUnavailable allows.
package daemonset

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
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

	DaemonSets *client.Cache[*appsv1.DaemonSet]
	Nodes      *client.Cache[*corev1.Node]

	sets      client.Resource[*appsv1.DaemonSet]
	pods      *owner.Claimer[*appsv1.DaemonSet, *corev1.Pod]
	revisions *owner.Claimer[*appsv1.DaemonSet, *appsv1.ControllerRevision]
	history   history.Reviser[*appsv1.DaemonSet]
	ownWrites *controller.Writes
	failures  *failures
	now       func() time.Time
}

// New returns the DaemonSet controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, DaemonSets: cluster.Of[*appsv1.DaemonSet](s), Nodes: cluster.Of[*corev1.Node](s),
		sets:      client.For[*appsv1.DaemonSet](s.Client),
		pods:      owner.NewClaimer[*appsv1.DaemonSet, *corev1.Pod](s, selectorOf),
		revisions: owner.NewClaimer[*appsv1.DaemonSet, *appsv1.ControllerRevision](s, selectorOf),
		ownWrites: controller.NewWrites(cluster.Of[*appsv1.DaemonSet](s)),
		failures:  newFailures(),
		now:       time.Now,
	}
	r.history = history.Reviser[*appsv1.DaemonSet]{
		Label: appsv1.DefaultDaemonSetUniqueLabelKey, Revisions: r.revisions, Owners: r.sets, Writes: r.ownWrites,
		Parts: func(o *appsv1.DaemonSet) (*corev1.PodTemplateSpec, **int32) {
			return &o.Spec.Template, &o.Status.CollisionCount
		},
	}
	return controller.Controller{
		Name: "daemonset", Workers: 2, Reconcile: r.reconcile,
		Fresh: func(key controller.Key) error {
			return errors.Join(r.pods.Writes.Fresh(key), r.revisions.Writes.Fresh(key), r.ownWrites.Fresh(key))
		},
		Sources: []controller.Source{
			controller.Objects(r.DaemonSets),
			r.pods.Source(),
			r.revisions.Source(),
			controller.From(r.Nodes, r.ofNode),
		},
	}
}

func selectorOf(ds *appsv1.DaemonSet) *metav1.LabelSelector { return ds.Spec.Selector }

// ofNode maps a node event to the DaemonSets whose pods the change lets in or keeps out.
func (r *reconciler) ofNode(ev client.Event[*corev1.Node]) []controller.Key {
	r.forgetNode(ev)
	if ev.Type == client.Modified && maps.Equal(ev.Old.Labels, ev.Object.Labels) && slices.EqualFunc(ev.Old.Spec.Taints, ev.Object.Spec.Taints, sameTaint) {
		return nil
	}
	var keys []controller.Key
	for _, ds := range r.DaemonSets.List() {
		fits := newFitter(ds)
		if ev.Type == client.Modified && fits.on(ev.Old) == fits.on(ev.Object) {
			continue
		}
		keys = append(keys, client.KeyOf(ds))
	}
	return keys
}

// forgetNode drops what is remembered of a node that was deleted.
func (r *reconciler) forgetNode(ev client.Event[*corev1.Node]) {
	if ev.Type == client.Deleted {
		r.failures.forgetNode(ev.Object.Name)
	}
}

func sameTaint(a, b corev1.Taint) bool {
	return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	ds, ok := r.DaemonSets.Get(key.Namespace, key.Name)
	if !ok {
		r.failures.forgetSet(key)
		return controller.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil {
		return controller.Result{}, nil // validation rejects such a selector
	}
	if selector.Empty() {
		r.Events.Warning(ctx, ds, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return controller.Result{}, nil
	}
	state, err := r.observe(ctx, ds, selector)
	if err != nil {
		return controller.Result{}, err
	}
	revision, err := r.history.Revise(ctx, ds, state.Revisions)
	if err != nil {
		return controller.Result{}, err
	}
	state.Hash = history.Hash(revision)
	plan := Plan(ds, state)
	return controller.Result{RequeueAfter: plan.RequeueAfter}, r.carryOut(ctx, ds, state, plan)
}

// observe claims the set's pods and revisions and returns the input of Plan.
func (r *reconciler) observe(ctx context.Context, ds *appsv1.DaemonSet, selector labels.Selector) (State, error) {
	pods, err := r.pods.Claim(ctx, ds, selector)
	if err != nil {
		return State{}, err
	}
	revisions, err := r.revisions.Claim(ctx, ds, selector)
	if err != nil {
		return State{}, err
	}
	now := r.now()
	return State{
		Nodes: r.Nodes.List(), Pods: pods, Revisions: revisions, Now: now,
		Wait: func(node string) time.Duration { return r.failures.wait(client.KeyOf(ds), ds.UID, node, now) },
	}, nil
}

// carryOut writes the plan: pods first, then surplus revisions, then the status.
func (r *reconciler) carryOut(ctx context.Context, ds *appsv1.DaemonSet, state State, plan Actions) error {
	failure := r.changePods(ctx, ds, state, plan)
	for _, old := range plan.Forget {
		if err := r.revisions.Objects.Delete(ctx, old.Namespace, old.Name, client.UID(old.UID)); err != nil && !apierrors.IsNotFound(err) {
			failure = errors.Join(failure, fmt.Errorf("delete revision %s: %w", old.Name, err))
		}
	}
	if reflect.DeepEqual(plan.Status, ds.Status) {
		return failure
	}
	next := ds.DeepCopy()
	next.Status = plan.Status
	got, err := r.sets.UpdateStatus(ctx, next)
	if apierrors.IsNotFound(err) {
		return failure
	}
	if err != nil {
		return errors.Join(failure, fmt.Errorf("status: %w", err))
	}
	r.ownWrites.Wrote(client.KeyOf(ds), got.ResourceVersion)
	return failure
}

func (r *reconciler) changePods(ctx context.Context, ds *appsv1.DaemonSet, state State, plan Actions) error {
	for _, e := range plan.Events {
		if e.Warning {
			r.Events.Warning(ctx, ds, e.Reason, "%s", e.Message)
		} else {
			r.Events.Normal(ctx, ds, e.Reason, "%s", e.Message)
		}
	}
	for _, node := range plan.Failed {
		r.failures.add(client.KeyOf(ds), ds.UID, node, state.Now)
	}
	key := client.KeyOf(ds)
	var failure error
	if len(plan.Delete) > 0 {
		done, err := podtemplate.Delete(ctx, r.Cluster, ds, plan.Delete)
		r.wrote(key, done)
		failure = err
	}
	if len(plan.Create) == 0 {
		return failure
	}
	pods := make([]*corev1.Pod, len(plan.Create))
	for i, node := range plan.Create {
		pods[i] = newPod(ds, state.Hash, node)
	}
	done, err := podtemplate.Create(ctx, r.Cluster, ds, pods)
	r.wrote(key, done)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		err = nil
	}
	return errors.Join(failure, err)
}

func (r *reconciler) wrote(key controller.Key, done podtemplate.Result) {
	for _, rv := range done.ResourceVersions {
		r.pods.Writes.Wrote(key, rv)
	}
}
