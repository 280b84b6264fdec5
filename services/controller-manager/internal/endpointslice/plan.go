package endpointslice

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/backend"
	"keelson.dev/services/controller-manager/internal/owner"
)

const (
	// managedBy is Kubernetes' own value. The slices have the same form, so a cluster
	// that is migrated keeps its slices.
	managedBy = "endpointslice-controller.k8s.io"
	// maxEndpoints is the largest number of endpoints in a slice, as in Kubernetes.
	maxEndpoints = 100
)

// Actions lists the writes, in this order.
type Actions struct {
	Create, Update, Delete []*discoveryv1.EndpointSlice
}

// group holds the endpoints with the same set of ports, which share slices.
type group struct {
	ports []discoveryv1.EndpointPort
	want  map[string]discoveryv1.Endpoint // by address and pod
	order []string
}

// Plan compares the wanted endpoints of a service with those in its slices. Endpoints
// stay in the slice they are in. New ones are added to slices that are written anyway,
// then to slices with room, then to new slices.
func Plan(svc *corev1.Service, pods []*corev1.Pod, have []*discoveryv1.EndpointSlice, node func(string) *corev1.Node) Actions {
	var plan Actions
	left := slices.Clone(have)
	slices.SortFunc(left, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return Actions{Delete: left}
	}
	p := parent{namespace: svc.Namespace, name: svc.Name, labels: labelsOf(svc), owner: owner.Reference(svc)}
	for _, family := range backend.Families(svc) {
		groups := groupsOf(svc, backend.Pods(svc, pods, family), node)
		for _, g := range groups {
			matching, rest := partition(left, discoveryv1.AddressType(family), g.ports)
			left = rest
			g.fill(&plan, p, family, matching)
		}
	}
	plan.Delete = append(plan.Delete, left...)
	return plan
}

// groupsOf groups endpoints by their ports. Without any endpoint there is one empty
// group, for an empty slice.
func groupsOf(svc *corev1.Service, pods []backend.Pod, node func(string) *corev1.Node) []*group {
	byPorts := map[string]*group{}
	var order []*group
	for _, p := range pods {
		ports := backend.Ports(svc, p.Pod)
		key := fmt.Sprint(ports)
		g := byPorts[key]
		if g == nil {
			g = &group{ports: slicePorts(ports), want: map[string]discoveryv1.Endpoint{}}
			byPorts[key] = g
			order = append(order, g)
		}
		e := endpoint(svc, p, node)
		k := identity(&e)
		if _, twice := g.want[k]; !twice {
			g.order = append(g.order, k)
		}
		g.want[k] = e
	}
	if len(order) == 0 {
		order = append(order, &group{want: map[string]discoveryv1.Endpoint{}})
	}
	return order
}

func slicePorts(ports []backend.Port) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for _, p := range ports {
		ep := discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &p.Port}
		if p.AppProtocol != "" {
			ep.AppProtocol = &p.AppProtocol
		}
		out = append(out, ep)
	}
	return out
}

// endpoint returns a pod as it appears in a slice.
func endpoint(svc *corev1.Service, p backend.Pod, node func(string) *corev1.Node) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses:  []string{p.Address},
		Conditions: discoveryv1.EndpointConditions{Ready: &p.Ready, Serving: &p.Serving, Terminating: &p.Terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Hostname != "" {
		e.Hostname = &p.Hostname
	}
	if p.Spec.NodeName == "" {
		return e
	}
	name := p.Spec.NodeName
	e.NodeName = &name
	zone := ""
	if n := node(name); n != nil {
		zone = n.Labels[corev1.LabelTopologyZone]
	}
	if zone != "" {
		e.Zone = &zone
	}
	e.Hints = hints(svc, &e)
	return e
}

// hints returns for which zones and nodes an endpoint is meant if the service wants its
// traffic to stay close (KEP-2433, KEP-3015). Hints are set for each endpoint by
// itself: with traffic distribution no zone's share has to be computed, and proxies
// ignore hints in zones without an endpoint.
func hints(svc *corev1.Service, e *discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	if svc.Spec.TrafficDistribution == nil || !*e.Conditions.Ready {
		return nil
	}
	h := &discoveryv1.EndpointHints{}
	switch *svc.Spec.TrafficDistribution {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		h.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
	default:
		return nil
	}
	if e.Zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
	}
	if len(h.ForNodes) == 0 && len(h.ForZones) == 0 {
		return nil
	}
	return h
}

// identity returns a key that an endpoint keeps while its state changes.
func identity(e *discoveryv1.Endpoint) string {
	id := strings.Join(e.Addresses, ",")
	if e.TargetRef != nil {
		id += " " + string(e.TargetRef.UID)
	}
	return id
}

// partition separates the slices of a family and set of ports from a list.
func partition(all []*discoveryv1.EndpointSlice, family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) (matching, rest []*discoveryv1.EndpointSlice) {
	for _, s := range all {
		if s.AddressType == family && apiequality.Semantic.DeepEqual(s.Ports, ports) {
			matching = append(matching, s)
		} else {
			rest = append(rest, s)
		}
	}
	return matching, rest
}

// held is a slice with what it is to hold.
type held struct {
	old       *discoveryv1.EndpointSlice
	endpoints []discoveryv1.Endpoint
	changed   bool
}

// parent is the object that slices are written for.
type parent struct {
	namespace, name     string
	labels, annotations map[string]string
	owner               metav1.OwnerReference
}

// fill distributes a group's endpoints over its slices.
func (g *group) fill(plan *Actions, p parent, family corev1.IPFamily, have []*discoveryv1.EndpointSlice) {
	var all []*held
	for _, s := range have {
		all = append(all, g.keep(s, p))
	}
	// Slices that are written anyway come first, then the fullest.
	slices.SortStableFunc(all, func(a, b *held) int {
		if a.changed != b.changed {
			if a.changed {
				return -1
			}
			return 1
		}
		return cmp.Compare(len(b.endpoints), len(a.endpoints))
	})
	rest := slices.DeleteFunc(g.order, func(k string) bool { _, still := g.want[k]; return !still })
	for _, h := range all {
		for len(rest) > 0 && len(h.endpoints) < maxEndpoints {
			h.endpoints, h.changed = append(h.endpoints, g.want[rest[0]]), true
			rest = rest[1:]
		}
	}
	for len(rest) > 0 || len(all) == 0 {
		h := &held{}
		for len(rest) > 0 && len(h.endpoints) < maxEndpoints {
			h.endpoints = append(h.endpoints, g.want[rest[0]])
			rest = rest[1:]
		}
		all = append(all, h)
	}
	g.write(plan, p, family, all)
}

// keep returns a slice with those of its endpoints that are still wanted, in their
// current state, and marks these as placed.
func (g *group) keep(s *discoveryv1.EndpointSlice, p parent) *held {
	h := &held{old: s, changed: !maps.Equal(s.Labels, p.labels) || !owned(s, p) || p.annotations != nil && !maps.Equal(s.Annotations, p.annotations)}
	for i := range s.Endpoints {
		k := identity(&s.Endpoints[i])
		want, ok := g.want[k]
		if !ok {
			h.changed = true
			continue
		}
		delete(g.want, k)
		if !apiequality.Semantic.DeepEqual(s.Endpoints[i], want) {
			h.changed = true
		}
		h.endpoints = append(h.endpoints, want)
	}
	return h
}

func owned(s *discoveryv1.EndpointSlice, p parent) bool {
	ref := metav1.GetControllerOfNoCopy(s)
	return ref != nil && ref.UID == p.owner.UID
}

// write puts the slices into the plan. An empty one is deleted unless it is the
// group's last.
func (g *group) write(plan *Actions, p parent, family corev1.IPFamily, all []*held) {
	full := slices.ContainsFunc(all, func(h *held) bool { return len(h.endpoints) > 0 })
	for i, h := range all {
		if len(h.endpoints) == 0 && (full || i > 0) {
			if h.old != nil {
				plan.Delete = append(plan.Delete, h.old)
			}
			continue
		}
		switch {
		case h.old == nil:
			plan.Create = append(plan.Create, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: p.namespace, GenerateName: p.name + "-", Labels: p.labels, Annotations: p.annotations,
					OwnerReferences: []metav1.OwnerReference{p.owner},
				},
				AddressType: discoveryv1.AddressType(family), Ports: g.ports, Endpoints: h.endpoints,
			})
		case h.changed:
			next := h.old.DeepCopy()
			next.Labels, next.Endpoints = p.labels, h.endpoints
			next.OwnerReferences = []metav1.OwnerReference{p.owner}
			if p.annotations != nil {
				next.Annotations = p.annotations
			}
			plan.Update = append(plan.Update, next)
		}
	}
}

// labelsOf returns the service's labels and those that identify its slices.
func labelsOf(svc *corev1.Service) map[string]string {
	out := make(map[string]string, len(svc.Labels)+3)
	for k, v := range svc.Labels {
		if k != discoveryv1.LabelServiceName && k != discoveryv1.LabelManagedBy && k != corev1.IsHeadlessService {
			out[k] = v
		}
	}
	out[discoveryv1.LabelServiceName] = svc.Name
	out[discoveryv1.LabelManagedBy] = managedBy
	if backend.Headless(svc) {
		out[corev1.IsHeadlessService] = ""
	}
	return out
}
