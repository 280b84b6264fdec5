package discovery

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// warnings returns the warnings of a slice: about its type on create, and about addresses in an
// unusual form, unless a controller manages it.
func warnings(s, old *discoveryv1.EndpointSlice) []string {
	var list []string
	if s.AddressType == discoveryv1.AddressTypeFQDN && old == nil {
		list = append(list, "spec.addressType: FQDN endpoints are deprecated")
	}
	switch s.Labels[discoveryv1.LabelManagedBy] {
	case "endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io":
		return list
	}
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return list
	}
	for i := range s.Endpoints {
		for j, address := range s.Endpoints[i].Addresses {
			list = append(list, validationutil.GetWarningsForIP(field.NewPath("endpoints").Index(i).Child("addresses").Index(j), address)...)
		}
	}
	return list
}

// EndpointSlice returns the row of endpointslices.
func EndpointSlice() *resource.Kind {
	k := row.Namespaced[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](discoveryv1.SchemeGroupVersion, "endpointslices", "endpointslices")
	k.Columns, k.Cells = columns(), cells
	k.Rules = resource.Typed[*discoveryv1.EndpointSlice]{
		Default:       defaultSlice,
		PrepareCreate: prepare,
		PrepareUpdate: func(s, _ *discoveryv1.EndpointSlice) { prepare(s) },
		Warnings:      warnings,
		Validate:      validate,
		ValidateUpdate: func(s, old *discoveryv1.EndpointSlice) field.ErrorList {
			e := check.Errors{List: validate(s)}
			if s.AddressType != old.AddressType {
				e.Invalid(field.NewPath("addressType"), nil, check.Immutable)
			}
			return e.List
		},
		SpecChanged: func(s, old *discoveryv1.EndpointSlice) bool {
			return s.AddressType != old.AddressType || !maps.Equal(s.Labels, old.Labels) ||
				!slices.EqualFunc(s.Endpoints, old.Endpoints, func(a, b discoveryv1.Endpoint) bool { return check.Same(&a, &b) }) ||
				!slices.EqualFunc(s.Ports, old.Ports, func(a, b discoveryv1.EndpointPort) bool { return check.Same(&a, &b) })
		},
	}.Rules()
	return k
}

func defaultSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Name == nil {
			name := ""
			p.Name = &name
		}
		if p.Protocol == nil {
			protocol := corev1.ProtocolTCP
			p.Protocol = &protocol
		}
	}
}

// prepare clears deprecatedTopology, which other fields of an endpoint have replaced.
func prepare(s *discoveryv1.EndpointSlice) {
	for i := range s.Endpoints {
		s.Endpoints[i].DeprecatedTopology = nil
	}
}

// Kubernetes' limits on a slice.
const (
	maxEndpoints = 1000
	maxPorts     = 20000
	maxAddresses = 100
	maxHints     = 8
)

func validate(s *discoveryv1.EndpointSlice) field.ErrorList {
	var e check.Errors
	check.OneOf(&e, nil, "addressType", s.AddressType, discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	p := field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		e.List = append(e.List, field.TooMany(p, len(s.Endpoints), maxEndpoints))
	} else {
		for i := range s.Endpoints {
			validateEndpoint(&e, &s.Endpoints[i], s.AddressType, p.Index(i))
		}
	}
	validatePorts(&e, s.Ports, field.NewPath("ports"))
	return e.List
}

func validateEndpoint(e *check.Errors, o *discoveryv1.Endpoint, kind discoveryv1.AddressType, p *field.Path) {
	at := p.Child("addresses")
	switch n := len(o.Addresses); {
	case n == 0:
		e.Required(at, "")
	case n > maxAddresses:
		e.List = append(e.List, field.TooMany(at, n, maxAddresses))
	}
	for i, address := range o.Addresses {
		validateAddress(e, address, kind, at, i)
	}
	if o.NodeName != nil {
		e.Messages(p, "nodeName", *o.NodeName, check.Subdomain(*o.NodeName))
	}
	if o.Hostname != nil {
		e.Messages(p, "hostname", *o.Hostname, check.Label(*o.Hostname))
	}
	if o.Hints != nil {
		validateHints(e, o.Hints, p.Child("hints"))
	}
}

func validateAddress(e *check.Errors, address string, kind discoveryv1.AddressType, list *field.Path, i int) {
	p := list.Index(i)
	if kind == discoveryv1.AddressTypeFQDN {
		e.Append(validationutil.IsFullyQualifiedDomainName(p, address))
		return
	}
	if kind != discoveryv1.AddressTypeIPv4 && kind != discoveryv1.AddressTypeIPv6 {
		return
	}
	if errs := validationutil.IsValidIPForLegacyField(p, address, true, nil); len(errs) > 0 {
		e.Append(errs)
		return
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return
	}
	if ip.Is4() != (kind == discoveryv1.AddressTypeIPv4) {
		e.Invalid(list, address, "must be an "+string(kind)+" address")
	}
	switch {
	case ip.IsUnspecified():
		e.Invalid(p, address, "may not be unspecified ("+address+")")
	case ip.IsLoopback():
		e.Invalid(p, address, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case ip.IsLinkLocalUnicast():
		e.Invalid(p, address, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case ip.IsLinkLocalMulticast():
		e.Invalid(p, address, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
}

func validateHints(e *check.Errors, h *discoveryv1.EndpointHints, p *field.Path) {
	var zones check.Seen
	at := p.Child("forZones")
	if len(h.ForZones) > maxHints {
		e.List = append(e.List, field.TooMany(at, len(h.ForZones), maxHints))
		return
	}
	for i, z := range h.ForZones {
		if zones.Add(z.Name) {
			e.Duplicate(at.Index(i).Child("name"), z.Name)
		}
		e.Messages(at.Index(i), "name", z.Name, check.LabelValue(z.Name))
	}
	var nodes check.Seen
	at = p.Child("forNodes")
	if len(h.ForNodes) > maxHints {
		e.List = append(e.List, field.TooMany(at, len(h.ForNodes), maxHints))
		return
	}
	for i, n := range h.ForNodes {
		if nodes.Add(n.Name) {
			e.Duplicate(at.Index(i).Child("name"), n.Name)
		}
		e.Messages(at.Index(i), "name", n.Name, check.Subdomain(n.Name))
	}
}

func validatePorts(e *check.Errors, ports []discoveryv1.EndpointPort, p *field.Path) {
	if len(ports) > maxPorts {
		e.List = append(e.List, field.TooMany(p, len(ports), maxPorts))
		return
	}
	var names check.Seen
	for i := range ports {
		port, at := &ports[i], p.Index(i)
		name := ""
		if port.Name != nil {
			name = *port.Name
		}
		if name != "" {
			e.Messages(at, "name", name, check.Label(name))
		}
		if names.Add(name) {
			e.Duplicate(at.Child("name"), name)
		}
		if port.Protocol == nil {
			e.Required(at.Child("protocol"), "")
		} else {
			check.Supported(e, at, "protocol", *port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
		}
		if port.AppProtocol != nil {
			e.Messages(at, "appProtocol", *port.AppProtocol, check.LabelKey(*port.AppProtocol))
		}
	}
}

func columns() []metav1.TableColumnDefinition {
	slice := discoveryv1.EndpointSlice{}
	return []metav1.TableColumnDefinition{
		column.Text("AddressType", column.Doc(slice, "addressType")),
		column.Text("Ports", column.Doc(slice, "ports")),
		column.Text("Endpoints", column.Doc(slice, "endpoints")),
		column.AgeColumn(),
	}
}

// shown is how many ports and endpoints a cell contains.
const shown = 3

func cells(o resource.Object) []any {
	s := o.(*discoveryv1.EndpointSlice)
	return []any{string(s.AddressType), portsText(s.Ports), endpointsText(s.Endpoints), column.Age(s.CreationTimestamp)}
}

func portsText(ports []discoveryv1.EndpointPort) string {
	if len(ports) == 0 {
		return column.Unset
	}
	var texts []string
	for _, p := range ports {
		text := "*"
		switch {
		case p.Port != nil:
			text = strconv.Itoa(int(*p.Port))
		case p.Name != nil && *p.Name != "":
			text = *p.Name
		}
		texts = append(texts, text)
	}
	return column.Some(texts, shown)
}

func endpointsText(endpoints []discoveryv1.Endpoint) string {
	if len(endpoints) == 0 {
		return column.Unset
	}
	var all []string
	for _, e := range endpoints {
		all = append(all, e.Addresses...)
	}
	return column.Some(all, shown)
}
