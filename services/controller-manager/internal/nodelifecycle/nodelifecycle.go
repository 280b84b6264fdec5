// Package nodelifecycle notices nodes that fall silent, keeps the taints that
// follow from nodes' conditions, and makes pods leave nodes whose taints they do
// not tolerate.
//
// A node is heard when its Lease is seen to change, by this process' own clock:
// clocks of nodes are not compared. A node that is silent for the grace period
// becomes Unknown. If not one node has been heard for that long, the silence is
// taken for our own (the apiserver was away) and the time counts anew once.
//
// It must never tell pods to leave when every zone seems lost, nor change taints
// and conditions that are not its own.
package nodelifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
)

// Config says how patient to be.
type Config struct {
	// Grace is how long a node may be silent at the most; one whose Lease states a
	// shorter duration may be silent for that long.
	Grace time.Duration
	// StartGrace is the same for a node that has never been heard.
	StartGrace time.Duration
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

type reconciler struct {
	*cluster.Cluster

	nodes  client.Resource[*corev1.Node]
	pods   client.Resource[*corev1.Pod]
	config Config
	heard  *heard
	// told is when the eviction of a node of the zone last began.
	mu   sync.Mutex
	told map[string]time.Time
}

// New is the controller.
func New(s *cluster.Cluster, c Config) controller.Controller {
	if c.Now == nil {
		c.Now = time.Now
	}
	r := &reconciler{
		Cluster: s, nodes: client.For[*corev1.Node](s.Client), pods: client.For[*corev1.Pod](s.Client),
		config: c, heard: &heard{at: map[string]time.Time{}}, told: map[string]time.Time{},
	}
	return controller.Controller{
		Name: "node-lifecycle", Workers: 4, Reconcile: r.reconcile, Extend: r.extend,
		Sources: []controller.Source{
			controller.Objects(s.Nodes),
			controller.From(s.NodeLeases, r.ofLease),
		},
		Synced: []<-chan struct{}{s.Pods.Synced()},
	}
}

// heard remembers when each node was last heard.
type heard struct {
	mu     sync.Mutex
	at     map[string]time.Time
	newest time.Time
	silent map[string]bool
}

func (h *heard) note(node string, now time.Time) (wasSilent bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at[node] = now
	h.newest = now
	wasSilent = h.silent[node]
	delete(h.silent, node)
	return wasSilent
}

func (h *heard) forget(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.at, node)
	delete(h.silent, node)
}

// last is when the node was heard, or when we began to listen for it; any is
// when any node was.
func (h *heard) last(node string, now time.Time) (last, any time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.at[node]; !ok {
		h.at[node] = now
	}
	return h.at[node], h.newest
}

func (h *heard) fell(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.silent == nil {
		h.silent = map[string]bool{}
	}
	h.silent[node] = true
}

// ofLease notes a heartbeat; only a node that was silent has to be looked at.
func (r *reconciler) ofLease(ev client.Event[*coordinationv1.Lease]) []controller.Key {
	if ev.Type == client.Deleted {
		return nil
	}
	if ev.Old != nil && ev.Old.Spec.RenewTime != nil && ev.Object.Spec.RenewTime != nil && ev.Old.Spec.RenewTime.Equal(ev.Object.Spec.RenewTime) {
		return nil
	}
	if r.heard.note(ev.Object.Name, r.config.Now()) {
		return []controller.Key{{Name: ev.Object.Name}}
	}
	return nil
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	node, ok := r.Nodes.Get("", key.Name)
	if !ok {
		r.heard.forget(key.Name)
		return controller.Result{}, nil
	}
	now := r.config.Now()
	wait, silent := r.silence(node, now)
	if silent {
		if conditions := Unknown(node, now); len(conditions) > 0 {
			if err := r.setUnknown(ctx, node, conditions); err != nil {
				return controller.Result{}, err
			}
			return controller.Result{RequeueAfter: time.Second}, nil // the cache shows it by then
		}
	}
	if c := condition(node, corev1.NodeReady); c != nil && c.Status != corev1.ConditionTrue {
		if err := r.podsNotReady(ctx, node); err != nil {
			return controller.Result{}, err
		}
	}
	evict, later := r.mayEvict(node, now)
	if err := r.setTaints(ctx, node, Taints(node, evict, now)); err != nil {
		return controller.Result{}, err
	}
	if later > 0 {
		wait = min(wait, later)
	}
	return controller.Result{RequeueAfter: wait}, nil
}

// extend is how much longer a node that goes on as it should need not be looked
// at: each heartbeat moves its deadline, and only one that passes is worth a
// reconcile.
func (r *reconciler) extend(key controller.Key) time.Duration {
	node, ok := r.Nodes.Get("", key.Name)
	if !ok {
		return 0
	}
	if c := condition(node, corev1.NodeReady); c == nil || c.Status != corev1.ConditionTrue {
		return 0
	}
	wait, silent := r.silence(node, r.config.Now())
	if silent {
		return 0
	}
	return wait
}

// silence reports whether the node has been silent for too long, or when to look
// again.
func (r *reconciler) silence(n *corev1.Node, now time.Time) (wait time.Duration, silent bool) {
	last, any := r.heard.last(n.Name, now)
	grace := r.grace(n.Name)
	if condition(n, corev1.NodeReady) == nil {
		grace = r.config.StartGrace
	}
	if now.Sub(any) >= grace {
		grace *= 2 // no node was heard: this process may be cut off
	}
	if left := grace - now.Sub(last); left > 0 {
		return left, false
	}
	r.heard.fell(n.Name)
	return r.config.Grace, true
}

// grace is how long a renewal of the node's Lease is good for.
func (r *reconciler) grace(node string) time.Duration {
	l, ok := r.NodeLeases.Get(corev1.NamespaceNodeLease, node)
	if !ok || l.Spec.LeaseDurationSeconds == nil || *l.Spec.LeaseDurationSeconds <= 0 {
		return r.config.Grace
	}
	return min(r.config.Grace, time.Duration(*l.Spec.LeaseDurationSeconds)*time.Second)
}

func (r *reconciler) setUnknown(ctx context.Context, n *corev1.Node, conditions []corev1.NodeCondition) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": n.UID},
		"status":   map[string]any{"conditions": conditions},
	})
	if err != nil {
		return err
	}
	_, err = r.nodes.Patch(ctx, "", n.Name, types.StrategicMergePatchType, patch, client.Subresource("status"))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("conditions of node %s: %w", n.Name, err)
	}
	if err == nil {
		r.Events.Normal(ctx, n, "NodeNotReady", "Node %s status is now: NodeNotReady", n.Name)
	}
	return nil
}

// podsNotReady takes a lost node's pods out of their Services.
func (r *reconciler) podsNotReady(ctx context.Context, n *corev1.Node) error {
	for _, p := range r.Pods.ByIndex(cluster.ByNode, n.Name) {
		if !podstate.Ready(p) {
			continue
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": p.UID},
			"status": map[string]any{"conditions": []map[string]any{{
				"type": corev1.PodReady, "status": corev1.ConditionFalse, "reason": "NodeNotReady",
				"lastTransitionTime": metav1.NewTime(r.config.Now()),
			}}},
		})
		if err != nil {
			return err
		}
		_, err = r.pods.Patch(ctx, p.Namespace, p.Name, types.StrategicMergePatchType, patch, client.Subresource("status"))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("readiness of pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		if err == nil {
			r.Events.Warning(ctx, p, "NodeNotReady", "Node is not ready")
		}
	}
	return nil
}

// mayEvict paces the evictions of nodes in a zone.
func (r *reconciler) mayEvict(n *corev1.Node, now time.Time) (may bool, later time.Duration) {
	if c := condition(n, corev1.NodeReady); c == nil || c.Status == corev1.ConditionTrue {
		return false, 0
	}
	zone := zoneOf(n)
	pace := Pace(r.Nodes.List())[zone]
	if pace == 0 {
		return false, evictionEvery
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := pace - now.Sub(r.told[zone]); left > 0 {
		return false, left
	}
	told := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
		return ours(&t) && t.Effect == corev1.TaintEffectNoExecute
	})
	if !told {
		r.told[zone] = now
	}
	return true, 0
}

func (r *reconciler) setTaints(ctx context.Context, n *corev1.Node, taints []corev1.Taint) error {
	if len(taints) == len(n.Spec.Taints) && sameTaints(taints, n.Spec.Taints) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": n.UID, "resourceVersion": n.ResourceVersion},
		"spec":     map[string]any{"taints": taints},
	})
	if err != nil {
		return err
	}
	_, err = r.nodes.Patch(ctx, "", n.Name, types.MergePatchType, patch)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("taints of node %s: %w", n.Name, err)
	}
	return nil
}
