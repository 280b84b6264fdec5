// Package podgc deletes pods that no other component deletes: those bound to a node that
// has gone, those that were deleted before they were bound, and the oldest of
// the finished ones when there are too many.
//
// It must never delete a pod of a node that still exists on the server: a node missing
// from the cache is looked up there, and only after a quarantine.
package podgc

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

const (
	// quarantine is how long a node must be gone, as in Kubernetes.
	quarantine = 40 * time.Second
	// DefaultTerminated is how many finished pods are kept, as in Kubernetes.
	DefaultTerminated = 12500
	// every is how often the finished pods are counted.
	every = 20 * time.Second
)

// overflow is the key under which finished pods are counted; no pod has an empty
// namespace.
var overflow = controller.Key{Name: "finished"}

type reconciler struct {
	*cluster.Cluster

	Pods  *client.Cache[*corev1.Pod]
	Nodes *client.Cache[*corev1.Node]

	pods       client.Resource[*corev1.Pod]
	nodes      client.Resource[*corev1.Node]
	terminated int
	quarantine time.Duration
	now        func() time.Time
	// missing holds since when each node has been missing. Only the one worker uses it.
	missing map[string]time.Time
	counted time.Time
}

// New returns the pod garbage collector.
func New(s *cluster.Cluster, o Options) controller.Controller {
	return build(s, o.Terminated, quarantine)
}

func build(s *cluster.Cluster, terminated int, wait time.Duration) controller.Controller {
	r := &reconciler{
		Cluster: s, Pods: cluster.Of[*corev1.Pod](s, cluster.ByNode), Nodes: cluster.Of[*corev1.Node](s),
		pods: client.For[*corev1.Pod](s.Client), nodes: client.For[*corev1.Node](s.Client),
		terminated: terminated, quarantine: wait, now: time.Now, missing: map[string]time.Time{},
	}
	return controller.Controller{
		Name: "pod-gc", Workers: 1, Reconcile: r.reconcile,
		Sources: []controller.Source{
			controller.From(r.Pods, r.ofPod),
			controller.From(r.Nodes, r.ofNode),
		},
	}
}

func (r *reconciler) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	p := ev.Object
	switch {
	case ev.Type == client.Deleted:
		return nil
	case finished(p):
		return []controller.Key{overflow, client.KeyOf(p)}
	case p.Spec.NodeName == "" && p.DeletionTimestamp == nil:
		return nil
	}
	return []controller.Key{client.KeyOf(p)}
}

func (r *reconciler) ofNode(ev client.Event[*corev1.Node]) []controller.Key {
	if ev.Type != client.Deleted {
		return nil
	}
	var keys []controller.Key
	for _, p := range r.Pods.ByIndex(cluster.ByNode, ev.Object.Name) {
		keys = append(keys, client.KeyOf(p))
	}
	return keys
}

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	if key == overflow {
		return r.trim(ctx)
	}
	p, ok := r.Pods.Get(key.Namespace, key.Name)
	if !ok {
		return controller.Result{}, nil
	}
	if p.Spec.NodeName == "" {
		if p.DeletionTimestamp == nil {
			return controller.Result{}, nil
		}
		return controller.Result{}, r.remove(ctx, p, "deleted before it was bound to a node")
	}
	if _, ok := r.Nodes.Get("", p.Spec.NodeName); ok {
		delete(r.missing, p.Spec.NodeName)
		return controller.Result{}, nil
	}
	since, known := r.missing[p.Spec.NodeName]
	if !known {
		since = r.now()
		r.missing[p.Spec.NodeName] = since
	}
	if wait := r.quarantine - r.now().Sub(since); wait > 0 {
		return controller.Result{RequeueAfter: wait}, nil
	}
	if _, err := r.nodes.Get(ctx, "", p.Spec.NodeName); err == nil {
		delete(r.missing, p.Spec.NodeName)
		return controller.Result{RequeueAfter: r.quarantine}, nil
	} else if !apierrors.IsNotFound(err) {
		return controller.Result{}, err
	}
	if err := r.fail(ctx, p); err != nil {
		return controller.Result{}, err
	}
	return controller.Result{}, r.remove(ctx, p, "its node "+p.Spec.NodeName+" no longer exists")
}

// fail records in the pod's status why it ends, so that a Job's policy can distinguish
// a lost node from a failed program.
func (r *reconciler) fail(ctx context.Context, p *corev1.Pod) error {
	if finished(p) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"status": map[string]any{
			"phase": corev1.PodFailed, "observedGeneration": p.Generation,
			"conditions": []map[string]any{{
				"type": corev1.DisruptionTarget, "status": corev1.ConditionTrue, "reason": "DeletionByPodGC",
				"message": "PodGC: node no longer exists", "lastTransitionTime": r.now().UTC().Format(time.RFC3339),
				"observedGeneration": p.Generation,
			}},
		},
	})
	if err != nil {
		return err
	}
	_, err = r.pods.Patch(ctx, p.Namespace, p.Name, types.StrategicMergePatchType, patch, client.Subresource("status"))
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("status of pod %s: %w", p.Name, err)
	}
	return nil
}

func (r *reconciler) remove(ctx context.Context, p *corev1.Pod, why string) error {
	err := r.pods.Delete(ctx, p.Namespace, p.Name, client.Grace(0), client.UID(p.UID))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove pod %s (%s): %w", p.Name, why, err)
	}
	return nil
}

// trim deletes the oldest finished pods beyond the limit.
func (r *reconciler) trim(ctx context.Context) (controller.Result, error) {
	if wait := every - r.now().Sub(r.counted); wait > 0 {
		return controller.Result{RequeueAfter: wait}, nil
	}
	r.counted = r.now()
	if r.terminated <= 0 {
		return controller.Result{}, nil
	}
	for _, p := range Excess(r.Pods.List(), r.terminated) {
		if err := r.remove(ctx, p, "too many finished pods"); err != nil {
			return controller.Result{}, err
		}
	}
	return controller.Result{}, nil
}

// Excess returns the finished pods beyond the newest keep, oldest first.
func Excess(pods []*corev1.Pod, keep int) []*corev1.Pod {
	var done []*corev1.Pod
	for _, p := range pods {
		if finished(p) && p.DeletionTimestamp == nil {
			done = append(done, p)
		}
	}
	if len(done) <= keep {
		return nil
	}
	slices.SortFunc(done, func(a, b *corev1.Pod) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
	})
	return done[:len(done)-keep]
}
