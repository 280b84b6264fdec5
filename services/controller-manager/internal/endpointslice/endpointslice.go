// Package endpointslice writes the EndpointSlices of services with a selector, and
// those that mirror Endpoints written by others.
//
// It must never change slices that it does not manage, nor remove an endpoint from one
// slice before the slice that takes it over is written.
package endpointslice

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/backend"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	Services       *client.Cache[*corev1.Service]
	EndpointSlices *client.Cache[*discoveryv1.EndpointSlice]
	// Pods and Nodes are those of New, Endpoints those of NewMirror.
	Pods      *client.Cache[*corev1.Pod]
	Nodes     *client.Cache[*corev1.Node]
	Endpoints *client.Cache[*corev1.Endpoints] //nolint:staticcheck // still served, and mirrored.

	slices client.Resource[*discoveryv1.EndpointSlice]
	writes *controller.Writes
}

// byService finds endpoint slices by the "namespace/name" of their service.
const byService = "service"

func newReconciler(s *cluster.Cluster) *reconciler {
	r := &reconciler{
		Cluster: s, Services: cluster.Of[*corev1.Service](s, cluster.ByNamespace), EndpointSlices: cluster.Of[*discoveryv1.EndpointSlice](s),
		slices: client.For[*discoveryv1.EndpointSlice](s.Client),
	}
	r.writes = controller.NewWrites(r.EndpointSlices)
	r.EndpointSlices.AddIndex(byService, func(e *discoveryv1.EndpointSlice) []string {
		return []string{e.Namespace + "/" + e.Labels[discoveryv1.LabelServiceName]}
	})
	return r
}

// New returns the controller. Its keys are services.
func New(s *cluster.Cluster) controller.Controller {
	r := newReconciler(s)
	r.Pods, r.Nodes = cluster.Of[*corev1.Pod](s, cluster.ByNamespace, cluster.ByNode), cluster.Of[*corev1.Node](s)
	return controller.Controller{
		Name: "endpointslice", Workers: 5, Reconcile: r.reconcile, Fresh: r.writes.Fresh,
		Sources: []controller.Source{
			controller.Objects(r.Services),
			controller.From(r.Pods, backend.ServicesOf(r.Services)),
			controller.From(r.EndpointSlices, ofSlice),
			controller.From(r.Nodes, r.ofNode),
		},
	}
}

// ofSlice enqueues a service when another client changes its slices.
func ofSlice(ev client.Event[*discoveryv1.EndpointSlice]) []controller.Key {
	if ev.Object.Labels[discoveryv1.LabelManagedBy] != managedBy {
		if ev.Old == nil || ev.Old.Labels[discoveryv1.LabelManagedBy] != managedBy {
			return nil
		}
	}
	return []controller.Key{{Namespace: ev.Object.Namespace, Name: ev.Object.Labels[discoveryv1.LabelServiceName]}}
}

// ofNode maps a node whose zone changed to the services with pods on it.
func (r *reconciler) ofNode(ev client.Event[*corev1.Node]) []controller.Key {
	if ev.Type != client.Modified || ev.Old.Labels[corev1.LabelTopologyZone] == ev.Object.Labels[corev1.LabelTopologyZone] {
		return nil
	}
	var keys []controller.Key
	services := backend.ServicesOf(r.Services)
	for _, p := range r.Pods.ByIndex(cluster.ByNode, ev.Object.Name) {
		keys = append(keys, services(client.Event[*corev1.Pod]{Type: client.Added, Object: p})...)
	}
	return keys
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	svc, ok := r.Services.Get(key.Namespace, key.Name)
	if !ok || svc.DeletionTimestamp != nil {
		return controller.Result{}, nil // the garbage collector takes its slices.
	}
	if len(svc.Spec.Selector) == 0 && svc.Spec.Type != corev1.ServiceTypeExternalName {
		return controller.Result{}, nil // another client writes them
	}
	var mine []*discoveryv1.EndpointSlice
	for _, s := range r.EndpointSlices.ByIndex(byService, key.String()) {
		if s.Labels[discoveryv1.LabelManagedBy] == managedBy && s.DeletionTimestamp == nil {
			mine = append(mine, s)
		}
	}
	var pods []*corev1.Pod
	if backend.Selects(svc) {
		pods = backend.Selected(r.Pods, svc)
	}
	plan := Plan(svc, pods, mine, func(name string) *corev1.Node {
		n, _ := r.Nodes.Get("", name)
		return n
	})
	return controller.Result{}, r.carryOut(ctx, key, plan)
}

func (r *reconciler) carryOut(ctx context.Context, key controller.Key, plan Actions) error {
	for _, s := range plan.Create {
		got, err := r.slices.Create(ctx, s)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("create endpoint slice: %w", err)
		}
		r.writes.Wrote(key, got.ResourceVersion)
	}
	for _, s := range plan.Update {
		got, err := r.slices.Update(ctx, s)
		if err != nil {
			return fmt.Errorf("update endpoint slice %s: %w", s.Name, err)
		}
		r.writes.Wrote(key, got.ResourceVersion)
	}
	for _, s := range plan.Delete {
		if err := r.slices.Delete(ctx, s.Namespace, s.Name, client.UID(s.UID)); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete endpoint slice %s: %w", s.Name, err)
		}
	}
	return nil
}
