// Package nodelifecycle detects nodes that stop sending heartbeats, keeps the taints
// that follow from node conditions, and evicts pods from nodes whose taints they do not
// tolerate.
//
// A heartbeat is a change of a node's Lease, timed by this process's own clock, so that
// the clocks of nodes are never compared. A node without a heartbeat for the grace
// period becomes Unknown. If no node at all has been heard for that long, this process
// may be the one that is cut off (the apiserver was unreachable), and the grace period
// is doubled.
//
// It must never evict pods while every zone seems lost, nor change taints and
// conditions that are not its own.
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

// Config holds the grace periods.
type Config struct {
	// Grace is the longest time without a heartbeat. If a node's Lease states a shorter
	// duration, that applies.
	Grace time.Duration
	// StartGrace is the grace period of a node that has never been heard.
	StartGrace time.Duration
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

type reconciler struct {
	*cluster.Cluster

	Nodes      *client.Cache[*corev1.Node]
	Pods       *client.Cache[*corev1.Pod]
	NodeLeases *client.Cache[*coordinationv1.Lease]

	nodes  client.Resource[*corev1.Node]
	pods   client.Resource[*corev1.Pod]
	config Config
	heard  *heard
	// told is when the eviction of a node in the zone last began.
	mu   sync.Mutex
	told map[string]time.Time
}

// New returns the node lifecycle controller.
func New(s *cluster.Cluster, c Config) controller.Controller {
	if c.Now == nil {
		c.Now = time.Now
	}
	r := &reconciler{
		Cluster: s, Nodes: cluster.Of[*corev1.Node](s), Pods: cluster.Of[*corev1.Pod](s, cluster.ByNode), NodeLeases: cluster.NodeLeases(s),
		nodes: client.For[*corev1.Node](s.Client), pods: client.For[*corev1.Pod](s.Client),
		config: c, heard: &heard{at: map[string]time.Time{}}, told: map[string]time.Time{},
	}
	return controller.Controller{
		Name: "node-lifecycle", Workers: 4, Reconcile: r.reconcile, Extend: r.extend,
		Sources: []controller.Source{
			controller.Objects(r.Nodes),
			controller.From(r.NodeLeases, r.ofLease),
		},
		Synced: []<-chan struct{}{r.Pods.Synced()},
	}
}

// heard records when each node was last heard.
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

// last returns when the node was last heard, or when this process began to listen for
// it. any is when any node was last heard.
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

// ofLease records a heartbeat. Only a node that was silent is reconciled.
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

// extend returns how much longer a healthy node need not be reconciled. Each heartbeat
// moves the deadline, and only a deadline that passes is worth a reconcile.
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

// silence reports whether the node has been silent for too long, and otherwise how long
// until it will have been.
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

// grace returns how long a node may be silent: the configured period, or the duration
// that its Lease states if that is shorter.
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

// podsNotReady marks the pods of a lost node as not ready, so that Services stop using
// them.
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

// mayEvict limits the rate at which nodes of a zone are evicted.
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
