package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TTLs of answers, in seconds. A ClusterIP lives as long as its Service; endpoints and the
// absence of a name may change with every rollout.
const (
	ttlService  = 30
	ttlEndpoint = 5
	ttlNegative = 5
	// specVersion is the version of Kubernetes' DNS specification.
	specVersion = "1.1.0"
	// maxAnswers is the maximum number of records in an answer.
	maxAnswers = 1000
)

// zone answers questions about the cluster's domain and its reverse names.
type zone struct {
	domain  string // canonical, for example "cluster.local."
	labels  []string
	source  Source
	ns      netip.Addr
	reverse []netip.Prefix
}

// result is the content of an answer.
type result struct {
	rcode  int
	answer []mdns.RR
	extra  []mdns.RR
	// chase is the target of a CNAME that must be resolved next.
	chase string
}

var (
	noData   = result{rcode: mdns.RcodeSuccess}
	nxDomain = result{rcode: mdns.RcodeNameError}
)

func newZone(cfg Config) *zone {
	domain := cfg.Domain
	if domain == "" {
		domain = "cluster.local"
	}
	z := &zone{domain: canonical(domain), source: cfg.Source, ns: cfg.ListenIP}
	z.labels = mdns.SplitDomainName(z.domain)
	for _, p := range []netip.Prefix{cfg.ClusterCIDR, cfg.ServiceCIDR} {
		if p.IsValid() {
			z.reverse = append(z.reverse, p.Masked())
		}
	}
	return z
}

// owns reports whether a name is in the cluster's domain.
func (z *zone) owns(name string) bool { return mdns.IsSubDomain(z.domain, name) }

// lookup answers a question about a canonical name in the domain.
func (z *zone) lookup(name string, qtype uint16) result {
	labels := mdns.SplitDomainName(name)
	labels = labels[:len(labels)-len(z.labels)]
	slices.Reverse(labels) // most significant label first: svc, namespace, service, …
	if len(labels) == 0 {
		return z.apex(qtype)
	}
	switch labels[0] {
	case "svc":
		return z.service(name, labels[1:], qtype)
	case "pod":
		return z.pod(name, labels[1:], qtype)
	case "dns-version":
		if len(labels) == 1 {
			return only(qtype, &mdns.TXT{Hdr: header(name, mdns.TypeTXT, ttlService), Txt: []string{specVersion}})
		}
	case "dns": // ns.dns is the name server in the SOA and NS records
		switch {
		case len(labels) == 1:
			return noData
		case len(labels) == 2 && labels[1] == "ns":
			return only(qtype, z.a(name, z.ns, ttlService))
		}
	}
	return nxDomain
}

func (z *zone) apex(qtype uint16) result {
	switch qtype {
	case mdns.TypeSOA:
		return result{answer: []mdns.RR{z.soa()}}
	case mdns.TypeNS:
		name := "ns.dns." + z.domain
		return result{
			answer: []mdns.RR{&mdns.NS{Hdr: header(z.domain, mdns.TypeNS, ttlService), Ns: name}},
			extra:  []mdns.RR{z.a(name, z.ns, ttlService)},
		}
	}
	return noData
}

// soa is part of negative answers. Its serial is constant, because there are no secondary
// servers. The answer for a name that does not exist may be cached for ttlNegative (RFC
// 2308).
func (z *zone) soa() mdns.RR {
	return &mdns.SOA{
		Hdr: header(z.domain, mdns.TypeSOA, ttlNegative), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttlNegative,
	}
}

// service answers questions about names under svc. labels are the namespace, the Service,
// the endpoint or protocol, and the port.
func (z *zone) service(name string, labels []string, qtype uint16) result {
	switch len(labels) {
	case 0:
		return noData
	case 1:
		if z.source.HasNamespace(labels[0]) {
			return noData
		}
		return nxDomain
	}
	svc, ok := z.source.Service(labels[0], labels[1])
	if !ok {
		return nxDomain
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return z.externalName(name, svc, labels[2:], qtype)
	}
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
	switch len(labels) {
	case 2:
		if headless {
			return z.headless(name, svc, qtype)
		}
		return z.clusterIP(name, svc, qtype)
	case 3:
		if strings.HasPrefix(labels[2], "_") {
			if hasProtocol(svc, labels[2]) {
				return noData // an empty non-terminal
			}
			return nxDomain
		}
		if headless {
			return z.endpoint(name, svc, labels[2], qtype)
		}
	case 4:
		if strings.HasPrefix(labels[2], "_") && strings.HasPrefix(labels[3], "_") {
			return z.portSRV(name, svc, headless, labels[3][1:], labels[2][1:], qtype)
		}
	}
	return nxDomain
}

func (z *zone) clusterIP(name string, svc *corev1.Service, qtype uint16) result {
	addr, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil || !addr.Is4() {
		return noData
	}
	switch qtype {
	case mdns.TypeA:
		return result{answer: []mdns.RR{z.a(name, addr, ttlService)}}
	case mdns.TypeSRV:
		return z.srvOfService(name, svc, addr, "", "")
	}
	return noData
}

// headless returns the addresses of all ready endpoints, in random order.
func (z *zone) headless(name string, svc *corev1.Service, qtype uint16) result {
	eps := z.endpoints(svc)
	switch {
	case len(eps) == 0:
		return noData // the name exists as long as the Service does
	case qtype == mdns.TypeA:
		seen := map[netip.Addr]bool{}
		var out result
		for _, ep := range eps {
			if !seen[ep.addr] && len(out.answer) < maxAnswers {
				seen[ep.addr] = true
				out.answer = append(out.answer, z.a(name, ep.addr, ttlEndpoint))
			}
		}
		return out
	case qtype == mdns.TypeSRV:
		return z.srvOfEndpoints(name, svc, eps, "", "")
	}
	return noData
}

func (z *zone) endpoint(name string, svc *corev1.Service, host string, qtype uint16) result {
	var out result
	found := false
	for _, ep := range z.endpoints(svc) {
		if ep.host == host {
			found = true
			out.answer = append(out.answer, z.a(name, ep.addr, ttlEndpoint))
		}
	}
	switch {
	case !found:
		return nxDomain
	case qtype == mdns.TypeA:
		return out
	}
	return noData
}

func (z *zone) portSRV(name string, svc *corev1.Service, headless bool, port, proto string, qtype uint16) result {
	var out result
	if headless {
		out = z.srvOfEndpoints(name, svc, z.endpoints(svc), port, proto)
	} else if addr, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil {
		out = z.srvOfService(name, svc, addr, port, proto)
	}
	switch {
	case len(out.answer) == 0:
		return nxDomain
	case qtype == mdns.TypeSRV:
		return out
	}
	return noData
}

// srvOfService returns a record for each port, or for the one with a given name and
// protocol.
func (z *zone) srvOfService(name string, svc *corev1.Service, addr netip.Addr, port, proto string) result {
	var out result
	target := svc.Name + "." + svc.Namespace + ".svc." + z.domain
	for _, p := range svc.Spec.Ports {
		if port != "" && (!strings.EqualFold(p.Name, port) || !strings.EqualFold(string(p.Protocol), proto)) {
			continue
		}
		out.answer = append(out.answer, srv(name, target, uint16(p.Port), ttlService))
	}
	if len(out.answer) > 0 {
		out.extra = []mdns.RR{z.a(target, addr, ttlService)}
	}
	return out
}

func (z *zone) srvOfEndpoints(name string, svc *corev1.Service, eps []dnsEndpoint, port, proto string) result {
	var out result
	known := map[string]bool{}
	for _, ep := range eps {
		target := ep.host + "." + svc.Name + "." + svc.Namespace + ".svc." + z.domain
		for _, p := range ep.ports {
			if port != "" && (!strings.EqualFold(p.name, port) || !strings.EqualFold(p.protocol, proto)) {
				continue
			}
			if len(out.answer) == maxAnswers {
				return out
			}
			out.answer = append(out.answer, srv(name, target, p.port, ttlEndpoint))
			if !known[target] {
				known[target] = true
				out.extra = append(out.extra, z.a(target, ep.addr, ttlEndpoint))
			}
		}
	}
	return out
}

// externalName answers with a CNAME whose target the caller resolves.
func (z *zone) externalName(name string, svc *corev1.Service, rest []string, qtype uint16) result {
	if len(rest) > 0 {
		return nxDomain
	}
	target := canonical(svc.Spec.ExternalName)
	if _, ok := mdns.IsDomainName(target); !ok || target == "." {
		return noData
	}
	out := result{answer: []mdns.RR{&mdns.CNAME{Hdr: header(name, mdns.TypeCNAME, ttlService), Target: target}}}
	if qtype != mdns.TypeCNAME {
		out.chase = target
	}
	return out
}

// pod answers a-b-c-d.namespace.pod with a.b.c.d. The name contains the address, so no pod
// is looked up (CoreDNS' mode "insecure", Kubernetes' default).
func (z *zone) pod(name string, labels []string, qtype uint16) result {
	switch len(labels) {
	case 0:
		return noData
	case 1:
		if z.source.HasNamespace(labels[0]) {
			return noData
		}
		return nxDomain
	case 2:
		addr, err := netip.ParseAddr(strings.ReplaceAll(labels[1], "-", "."))
		if err != nil || !addr.Is4() {
			return nxDomain
		}
		return only(qtype, z.a(name, addr, ttlEndpoint))
	}
	return nxDomain
}

// ownsReverse reports whether an address is in one of the cluster's ranges.
func (z *zone) ownsReverse(addr netip.Addr) bool {
	return slices.ContainsFunc(z.reverse, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// pointer answers the reverse question for an address. found is false if no Service and no
// endpoint of a headless Service has the address.
func (z *zone) pointer(name string, addr netip.Addr) (out result, found bool) {
	add := func(target string, ttl uint32) {
		out.answer = append(out.answer, &mdns.PTR{Hdr: header(name, mdns.TypePTR, ttl), Ptr: target})
	}
	for _, svc := range z.source.ServicesAt(addr) {
		add(svc.Name+"."+svc.Namespace+".svc."+z.domain, ttlService)
	}
	if len(out.answer) > 0 {
		return out, true
	}
	var targets []string
	for _, slice := range z.source.SlicesAt(addr) {
		owner := slice.Labels[discoveryv1.LabelServiceName]
		svc, ok := z.source.Service(slice.Namespace, owner)
		if !ok || svc.Spec.ClusterIP != corev1.ClusterIPNone {
			continue
		}
		for _, ep := range z.endpoints(svc) {
			if ep.addr == addr {
				targets = append(targets, ep.host+"."+owner+"."+slice.Namespace+".svc."+z.domain)
			}
		}
	}
	slices.Sort(targets)
	for _, t := range slices.Compact(targets) {
		add(t, ttlEndpoint)
	}
	return out, len(out.answer) > 0
}

// dnsEndpoint is an endpoint of a headless Service.
type dnsEndpoint struct {
	host  string
	addr  netip.Addr
	ports []dnsPort
}

type dnsPort struct {
	name, protocol string
	port           uint16
}

// endpoints returns the ready endpoints of a Service, in random order, because many clients
// use only the first address.
func (z *zone) endpoints(svc *corev1.Service) []dnsEndpoint {
	var out []dnsEndpoint
	for _, slice := range z.source.ServiceSlices(svc.Namespace, svc.Name) {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		var ports []dnsPort
		for _, p := range slice.Ports {
			if p.Port == nil || *p.Port <= 0 || *p.Port > 65535 {
				continue
			}
			port := dnsPort{protocol: "TCP", port: uint16(*p.Port)}
			if p.Name != nil {
				port.name = *p.Name
			}
			if p.Protocol != nil {
				port.protocol = string(*p.Protocol)
			}
			ports = append(ports, port)
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, s := range e.Addresses {
				addr, err := netip.ParseAddr(s)
				if err != nil || !addr.Is4() {
					continue
				}
				host := strings.ReplaceAll(addr.String(), ".", "-")
				if e.Hostname != nil && *e.Hostname != "" {
					host = strings.ToLower(*e.Hostname)
				}
				out = append(out, dnsEndpoint{host: host, addr: addr, ports: ports})
			}
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func hasProtocol(svc *corev1.Service, label string) bool {
	return slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Name != "" && strings.EqualFold("_"+string(p.Protocol), label)
	})
}

func (z *zone) a(name string, addr netip.Addr, ttl uint32) mdns.RR {
	return &mdns.A{Hdr: header(name, mdns.TypeA, ttl), A: addr.AsSlice()}
}

func srv(name, target string, port uint16, ttl uint32) mdns.RR {
	return &mdns.SRV{Hdr: header(name, mdns.TypeSRV, ttl), Priority: 0, Weight: 100, Port: port, Target: target}
}

func header(name string, rrtype uint16, ttl uint32) mdns.RR_Header {
	return mdns.RR_Header{Name: name, Rrtype: rrtype, Class: mdns.ClassINET, Ttl: ttl}
}

// only returns the record if it is of type qtype, otherwise no data.
func only(qtype uint16, rr mdns.RR) result {
	if rr.Header().Rrtype == qtype {
		return result{answer: []mdns.RR{rr}}
	}
	return noData
}
