package endpointslice

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/backend"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/internal/controller"
)

const (
	// mirroredBy marks the slices that mirror Endpoints.
	mirroredBy = "endpointslicemirroring-controller.k8s.io"
	// maxMirrored is the largest number of addresses taken from one subset, as in
	// Kubernetes.
	maxMirrored = 1000
	leaderLease = "control-plane.alpha.kubernetes.io/leader"
)

// NewMirror returns the controller that mirrors to EndpointSlices the Endpoints which
// users and other programs write for services without a selector. Its keys are
// Endpoints.
func NewMirror(s *cluster.Cluster) controller.Controller {
	r := newReconciler(s)
	r.Endpoints = cluster.Of[*corev1.Endpoints](s) //nolint:staticcheck // as above.
	return controller.Controller{
		Name: "endpointslice-mirror", Reconcile: r.mirror, Fresh: r.writes.Fresh,
		Sources: []controller.Source{
			controller.Objects(r.Endpoints),
			controller.Objects(r.Services),
			controller.From(r.EndpointSlices, func(ev client.Event[*discoveryv1.EndpointSlice]) []controller.Key {
				if ev.Object.Labels[discoveryv1.LabelManagedBy] != mirroredBy {
					return nil
				}
				return []controller.Key{{Namespace: ev.Object.Namespace, Name: ev.Object.Labels[discoveryv1.LabelServiceName]}}
			}),
		},
	}
}

func (r *reconciler) mirror(ctx context.Context, key controller.Key) (controller.Result, error) {
	var mine []*discoveryv1.EndpointSlice
	for _, s := range r.EndpointSlices.ByIndex(byService, key.String()) {
		if s.Labels[discoveryv1.LabelManagedBy] == mirroredBy && s.DeletionTimestamp == nil {
			mine = append(mine, s)
		}
	}
	e, ok := r.Endpoints.Get(key.Namespace, key.Name)
	svc, has := r.Services.Get(key.Namespace, key.Name)
	var plan Actions
	switch {
	case ok && has && mirrored(e) && len(svc.Spec.Selector) == 0 && e.DeletionTimestamp == nil:
		plan = mirrorOf(e, mine)
	case len(mine) > 0:
		plan.Delete = mine
	}
	return controller.Result{}, r.carryOut(ctx, key, plan)
}

// mirrored reports whether Endpoints are mirrored to slices. Locks of old leader
// elections are not, nor Endpoints whose writer also writes slices.
func mirrored(e *corev1.Endpoints) bool { //nolint:staticcheck // this is what the controller is for.
	_, lock := e.Annotations[leaderLease]
	return !lock && e.Labels[discoveryv1.LabelSkipMirror] != "true"
}

// mirrorOf compares Endpoints with their slices.
func mirrorOf(e *corev1.Endpoints, have []*discoveryv1.EndpointSlice) Actions { //nolint:staticcheck // as above.
	p := parent{namespace: e.Namespace, name: e.Name, labels: maps.Clone(e.Labels), annotations: map[string]string{}, owner: owner.Reference(e)}
	if p.labels == nil {
		p.labels = map[string]string{}
	}
	p.labels[discoveryv1.LabelServiceName] = e.Name
	p.labels[discoveryv1.LabelManagedBy] = mirroredBy
	for k, v := range e.Annotations {
		if k != corev1.LastAppliedConfigAnnotation && k != corev1.EndpointsLastChangeTriggerTime {
			p.annotations[k] = v
		}
	}
	var plan Actions
	left := slices.Clone(have)
	for i := range e.Subsets {
		for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			g := mirrorGroup(&e.Subsets[i], family)
			if len(g.order) == 0 {
				continue
			}
			matching, rest := partition(left, discoveryv1.AddressType(family), g.ports)
			left = rest
			g.fill(&plan, p, family, matching)
		}
	}
	plan.Delete = append(plan.Delete, left...)
	return plan
}

// mirrorGroup is a subset's addresses of a family.
func mirrorGroup(s *corev1.EndpointSubset, family corev1.IPFamily) *group { //nolint:staticcheck // as above.
	g := &group{want: map[string]discoveryv1.Endpoint{}}
	for i := range s.Ports {
		port := s.Ports[i]
		ep := discoveryv1.EndpointPort{Name: &port.Name, Protocol: &port.Protocol, Port: &port.Port, AppProtocol: port.AppProtocol}
		g.ports = append(g.ports, ep)
	}
	add := func(a *corev1.EndpointAddress, ready bool) { //nolint:staticcheck // as above.
		if backend.FamilyOf(a.IP) != family || len(g.order) >= maxMirrored {
			return
		}
		e := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: a.TargetRef, NodeName: a.NodeName}
		if a.Hostname != "" {
			e.Hostname = &a.Hostname
		}
		k := identity(&e)
		if _, twice := g.want[k]; twice {
			return
		}
		g.want[k] = e
		g.order = append(g.order, k)
	}
	for i := range s.Addresses {
		add(&s.Addresses[i], true)
	}
	for i := range s.NotReadyAddresses {
		add(&s.NotReadyAddresses[i], false)
	}
	return g
}
