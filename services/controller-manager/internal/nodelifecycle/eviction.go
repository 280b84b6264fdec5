package nodelifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
)

type evicter struct {
	*cluster.Cluster

	Pods  *client.Cache[*corev1.Pod]
	Nodes *client.Cache[*corev1.Node]

	pods client.Resource[*corev1.Pod]
	now  func() time.Time

	mu sync.Mutex
	// seen holds, by node, when this controller first saw NoExecute taints without a
	// timeAdded, as kubectl adds them. A new leader starts over, as in Kubernetes.
	seen map[string][]corev1.Taint
}

// NewEviction returns the controller that deletes pods from nodes with a NoExecute
// taint that they do not tolerate, or no longer tolerate.
func NewEviction(s *cluster.Cluster) controller.Controller {
	return newEviction(s, time.Now)
}

func newEviction(s *cluster.Cluster, now func() time.Time) controller.Controller {
	e := &evicter{
		Cluster: s, Pods: cluster.Of[*corev1.Pod](s, cluster.ByNode), Nodes: cluster.Of[*corev1.Node](s),
		pods: client.For[*corev1.Pod](s.Client), now: now, seen: map[string][]corev1.Taint{},
	}
	return controller.Controller{
		Name: "taint-eviction", Workers: 4, Reconcile: e.reconcile,
		Sources: []controller.Source{
			controller.From(e.Pods, e.ofPod),
			controller.From(e.Nodes, e.ofNode),
		},
	}
}

func (e *evicter) ofPod(ev client.Event[*corev1.Pod]) []controller.Key {
	if ev.Type == client.Deleted || ev.Object.Spec.NodeName == "" {
		return nil
	}
	n, ok := e.Nodes.Get("", ev.Object.Spec.NodeName)
	if !ok || len(noExecute(n)) == 0 {
		return nil
	}
	return []controller.Key{client.KeyOf(ev.Object)}
}

func (e *evicter) ofNode(ev client.Event[*corev1.Node]) []controller.Key {
	if ev.Type == client.Deleted {
		e.since(ev.Object.Name, nil)
		return nil
	}
	if len(e.since(ev.Object.Name, noExecute(ev.Object))) == 0 {
		return nil
	}
	var keys []controller.Key
	for _, p := range e.Pods.ByIndex(cluster.ByNode, ev.Object.Name) {
		keys = append(keys, client.KeyOf(p))
	}
	return keys
}

// since sets the timeAdded of a node's NoExecute taints that lack it to the time when
// they were first seen, and returns the taints. It forgets the times of removed taints.
func (e *evicter) since(node string, taints []corev1.Taint) []corev1.Taint {
	e.mu.Lock()
	defer e.mu.Unlock()
	var seen []corev1.Taint
	for i := range taints {
		t := &taints[i]
		if t.TimeAdded != nil {
			continue
		}
		at := metav1.NewTime(e.now())
		for _, s := range e.seen[node] {
			if s.Key == t.Key && s.Value == t.Value {
				at = *s.TimeAdded
			}
		}
		t.TimeAdded = &at
		seen = append(seen, *t)
	}
	if len(seen) == 0 {
		delete(e.seen, node)
	} else {
		e.seen[node] = seen
	}
	return taints
}

func noExecute(n *corev1.Node) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

func (e *evicter) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	p, ok := e.Pods.Get(key.Namespace, key.Name)
	if !ok || p.Spec.NodeName == "" || p.DeletionTimestamp != nil || podstate.Finished(p) {
		return controller.Result{}, nil
	}
	n, ok := e.Nodes.Get("", p.Spec.NodeName)
	if !ok {
		return controller.Result{}, nil
	}
	now := e.now()
	at, ever := Leaves(p, e.since(n.Name, noExecute(n)), now)
	if !ever {
		return controller.Result{}, nil
	}
	if wait := at.Sub(now); wait > 0 {
		return controller.Result{RequeueAfter: wait}, nil
	}
	return controller.Result{}, e.evict(ctx, p)
}

// Leaves returns when a pod must leave a node with these NoExecute taints; ever is false
// if it may stay. It must leave at once for a taint that it does not tolerate. The time
// for which a taint is tolerated begins when the taint is added, or when the pod is
// scheduled to the node if that is later.
func Leaves(p *corev1.Pod, taints []corev1.Taint, now time.Time) (at time.Time, ever bool) {
	var came time.Time
	if c := podstate.Condition(p, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionTrue {
		came = c.LastTransitionTime.Time
	}
	for i := range taints {
		t := &taints[i]
		since := now
		if t.TimeAdded != nil {
			since = t.TimeAdded.Time
		}
		if came.After(since) {
			since = came
		}
		tolerated, forever := false, false
		var seconds int64
		for j := range p.Spec.Tolerations {
			tol := &p.Spec.Tolerations[j]
			if !tolerates(tol, t) {
				continue
			}
			switch {
			case tol.TolerationSeconds == nil:
				forever = forever || !tolerated
			case !tolerated || forever || *tol.TolerationSeconds < seconds:
				seconds, forever = max(*tol.TolerationSeconds, 0), false
			}
			tolerated = true
		}
		switch {
		case !tolerated:
			return now, true
		case forever:
			continue
		}
		if end := since.Add(time.Duration(seconds) * time.Second); !ever || end.Before(at) {
			at, ever = end, true
		}
	}
	return at, ever
}

// tolerates reports whether a toleration matches a taint.
func tolerates(tol *corev1.Toleration, t *corev1.Taint) bool {
	if tol.Effect != "" && tol.Effect != t.Effect || tol.Key != "" && tol.Key != t.Key {
		return false
	}
	switch tol.Operator {
	case corev1.TolerationOpExists:
		return true
	case "", corev1.TolerationOpEqual:
		return tol.Key != "" && tol.Value == t.Value
	}
	return false
}

func (e *evicter) evict(ctx context.Context, p *corev1.Pod) error {
	e.Events.Normal(ctx, p, "TaintManagerEviction", "Marking for deletion Pod %s/%s", p.Namespace, p.Name)
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"status": map[string]any{"conditions": []map[string]any{{
			"type": corev1.DisruptionTarget, "status": corev1.ConditionTrue, "reason": "DeletionByTaintManager",
			"message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": metav1.NewTime(e.now()),
			"observedGeneration": p.Generation,
		}}},
	})
	if err != nil {
		return err
	}
	_, err = e.pods.Patch(ctx, p.Namespace, p.Name, types.StrategicMergePatchType, patch, client.Subresource("status"))
	if err == nil {
		err = e.pods.Delete(ctx, p.Namespace, p.Name, client.UID(p.UID))
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("evict pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}
