// Package fencing deletes the pods of a node that is cut off, once the node has stopped
// them, so that their workloads create replacements. Kubernetes leaves the pods of a
// StatefulSet on such a node for ever.
//
// Nodes promise in their Lease to stop the pods that it names unless they renew it; see
// package fence of services/internal for the protocol and its argument. This controller
// must never delete a pod by a version of a Lease that it has not watched for the whole
// time, by its own clock, or that is no longer the stored one.
package fencing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/fence"
)

// sighting is the version of a node's Lease that was seen last, and when it was seen first.
type sighting struct {
	version string
	at      time.Time
}

type reconciler struct {
	*cluster.Cluster

	NodeLeases *client.Cache[*coordinationv1.Lease]
	Pods       *client.Cache[*corev1.Pod]

	leases client.Resource[*coordinationv1.Lease]
	pods   client.Resource[*corev1.Pod]
	now    func() time.Time // with a monotonic reading

	mu   sync.Mutex
	seen map[string]sighting // by node
}

// New returns the controller; its keys are nodes.
func New(s *cluster.Cluster) controller.Controller { return newController(s, time.Now) }

func newController(s *cluster.Cluster, now func() time.Time) controller.Controller {
	r := &reconciler{
		Cluster: s, NodeLeases: cluster.NodeLeases(s), Pods: cluster.Of[*corev1.Pod](s, cluster.ByNode),
		leases: client.For[*coordinationv1.Lease](s.Client), pods: client.For[*corev1.Pod](s.Client),
		now: now, seen: map[string]sighting{},
	}
	return controller.Controller{
		Name: "fencing", Workers: 2, Reconcile: r.reconcile, Extend: r.extend,
		Sources: []controller.Source{controller.From(r.NodeLeases, r.ofLease)},
		Synced:  []<-chan struct{}{r.Pods.Synced()},
	}
}

// ofLease notes a new version of a Lease. A node is reconciled when it begins to promise
// something; from then on its deadline moves with each version (see extend).
func (r *reconciler) ofLease(ev client.Event[*coordinationv1.Lease]) []controller.Key {
	node := ev.Object.Name
	_, promises := fence.ParsePromise(ev.Object.Annotations)
	r.mu.Lock()
	defer r.mu.Unlock()
	if ev.Type == client.Deleted || !promises {
		delete(r.seen, node)
		return nil
	}
	_, known := r.seen[node]
	r.seen[node] = sighting{ev.Object.ResourceVersion, r.now()}
	if known {
		return nil
	}
	return []controller.Key{{Name: node}}
}

// wait returns how long until the pods that the node's Lease names are stopped; due is true
// if they are. promise is empty if the node promises nothing.
func (r *reconciler) wait(node string) (promise fence.Promise, version string, left time.Duration) {
	r.mu.Lock()
	s, ok := r.seen[node]
	r.mu.Unlock()
	if !ok {
		return fence.Promise{}, "", 0
	}
	l, ok := r.NodeLeases.Get(corev1.NamespaceNodeLease, node)
	if !ok {
		return fence.Promise{}, "", 0
	}
	promise, ok = fence.ParsePromise(l.Annotations)
	if !ok {
		return fence.Promise{}, "", 0
	}
	if l.ResourceVersion != s.version {
		return promise, "", fence.Due(promise) // its event is about to arrive
	}
	return promise, s.version, fence.Due(promise) - r.now().Sub(s.at)
}

// extend returns how much longer a node need not be reconciled, because it has renewed its
// Lease.
func (r *reconciler) extend(key controller.Key) time.Duration {
	_, _, left := r.wait(key.Name)
	return max(left, 0)
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	promise, version, left := r.wait(key.Name)
	if len(promise.Pods) == 0 {
		return controller.Result{}, nil
	}
	// The node is looked at again after this time even if there is nothing to do: the
	// requeue is what extend puts off.
	again := controller.Result{RequeueAfter: fence.Due(promise)}
	if left > 0 {
		return controller.Result{RequeueAfter: left}, nil
	}
	stopped := r.named(key.Name, promise)
	if len(stopped) == 0 {
		return again, nil
	}
	live, err := r.leases.Get(ctx, corev1.NamespaceNodeLease, key.Name)
	if apierrors.IsNotFound(err) {
		return controller.Result{}, nil
	}
	if err != nil {
		return controller.Result{}, fmt.Errorf("read lease of node %s: %w", key.Name, err)
	}
	if live.ResourceVersion != version {
		return again, nil // it was renewed; the watch is behind
	}
	var failure error
	for _, p := range stopped {
		err := r.pods.Delete(ctx, p.Namespace, p.Name, client.UID(p.UID), client.Grace(0))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			failure = errors.Join(failure, fmt.Errorf("delete pod %s/%s: %w", p.Namespace, p.Name, err))
			continue
		}
		if err == nil {
			r.Events.Warning(ctx, p, "Fenced", "Node %s is cut off and has stopped the pod; deleted it so that it can be replaced", key.Name)
		}
	}
	return again, failure
}

// named returns the pods on a node that its promise names and that have not ended.
func (r *reconciler) named(node string, promise fence.Promise) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range r.Pods.ByIndex(cluster.ByNode, node) {
		if slices.Contains(promise.Pods, p.UID) && !podstate.Finished(p) {
			out = append(out, p)
		}
	}
	return out
}
