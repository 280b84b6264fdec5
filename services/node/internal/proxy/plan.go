package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// The table's sets and verdict maps, whose elements belong to Services, and the names of
// other fixed parts.
const (
	mapIPs         = "service-ips"
	mapNodePorts   = "service-nodeports"
	mapDeadIPs     = "no-endpoint-ips"
	mapDeadPorts   = "no-endpoint-nodeports"
	setClusterIPs  = "cluster-ips"
	setHairpin     = "hairpin"
	setNodeIPs     = "node-ips"
	chainRefuse    = "refuse"
	verdictDrop    = "drop"
	clientsPrefix  = "clients-"
	masqueradeMark = "0x00004000"
)

// element is a member of a set or map: the name of the container, and the key in nft's
// syntax, with its parts joined by " . ".
type element struct {
	container string
	key       string
}

// fragment is one Service's part of the table.
type fragment struct {
	created  time.Time
	chains   map[string][]string
	affinity map[string]time.Duration
	elements map[element]string
	hairpins []string
	udp      []udpPort
	health   *localHealth
}

// udpPort is a front of a UDP Service and its current targets. It is used to end flows to
// former endpoints.
type udpPort struct {
	// addr is the zero Addr for a NodePort.
	addr    netip.Addr
	port    uint16
	targets map[netip.AddrPort]struct{}
}

// localHealth is the response to a load balancer's health check of this node.
type localHealth struct {
	namespace, name string
	port            uint16
	localEndpoints  int
}

// plan computes a Service's fragment. It returns nil for a Service that needs no rules:
// headless, ExternalName, IPv6 only, or served by the node itself.
func plan(node Node, svc *corev1.Service, epSlices []*discoveryv1.EndpointSlice) *fragment {
	clusterIP, ok := clusterIPOf(svc)
	if !ok || slices.Contains(node.NodeLocal, clusterIP) {
		return nil
	}
	f := &fragment{
		created:  svc.CreationTimestamp.Time,
		chains:   map[string][]string{},
		affinity: map[string]time.Duration{},
		elements: map[element]string{},
	}
	f.elements[element{setClusterIPs, clusterIP.String()}] = ""
	locals := map[string]struct{}{}
	for _, port := range svc.Spec.Ports {
		p := newPortPlan(node, svc, port, epSlices)
		p.clusterIP = clusterIP
		p.into(f)
		for _, ep := range usable(p.all, isLocal) {
			locals[ep.addr.Addr().String()] = struct{}{}
		}
	}
	if needsHealthCheck(svc) {
		f.health = &localHealth{
			namespace: svc.Namespace, name: svc.Name,
			port: uint16(svc.Spec.HealthCheckNodePort), localEndpoints: len(locals),
		}
	}
	return f
}

// portPlan is the plan of one port of a Service.
type portPlan struct {
	node      Node
	svc       *corev1.Service
	port      corev1.ServicePort
	clusterIP netip.Addr
	proto     string
	name      string // namespace/name/protocol/port
	all       []endpoint
	cluster   []endpoint // for traffic that may go to any node
	local     []endpoint // for traffic that must stay on this node
}

func newPortPlan(node Node, svc *corev1.Service, port corev1.ServicePort, list []*discoveryv1.EndpointSlice) *portPlan {
	proto := strings.ToLower(string(protocolOf(port)))
	p := &portPlan{
		node: node, svc: svc, port: port, proto: proto,
		name: fmt.Sprintf("%s/%s/%s/%d", svc.Namespace, svc.Name, proto, port.Port),
		all:  endpointsFor(node, port, list),
	}
	p.cluster = nearby(node, usable(p.all, nil))
	p.local = usable(p.all, isLocal)
	return p
}

func (p *portPlan) into(f *fragment) {
	internal := p.internalVerdict(f)
	p.addFront(f, p.clusterIP, p.port.Port, internal, p.internalTargets())

	fronts := externalAddresses(p.svc)
	ranges, restricted := sourceRanges(p.svc)
	balanced := loadBalancerAddresses(p.svc)
	hasNodePort := p.port.NodePort > 0
	if len(fronts) == 0 && len(balanced) == 0 && !hasNodePort {
		p.addHairpin(f)
		return
	}
	external := p.externalVerdict(f)
	targets := p.externalTargets()
	for _, addr := range fronts {
		p.addFront(f, addr, p.port.Port, external, targets)
	}
	through := external
	if restricted && external != refused {
		through = p.restrict(f, ranges, external)
	}
	for _, addr := range balanced {
		p.addFront(f, addr, p.port.Port, through, targets)
	}
	if hasNodePort {
		p.addFront(f, netip.Addr{}, p.port.NodePort, external, targets)
	}
	p.addHairpin(f)
}

// refused means that there are no endpoints at all: connections are rejected at once.
const refused = "refuse"

// addFront makes an address and port, or a NodePort if addr is zero, lead to a verdict.
func (p *portPlan) addFront(f *fragment, addr netip.Addr, port int32, verdict string, targets []endpoint) {
	key := p.proto + " . " + strconv.Itoa(int(port))
	container, dead := mapNodePorts, mapDeadPorts
	if addr.IsValid() {
		key = addr.String() + " . " + key
		container, dead = mapIPs, mapDeadIPs
	}
	if verdict == refused {
		f.elements[element{dead, key}] = "goto " + chainRefuse
	} else {
		f.elements[element{container, key}] = verdict
	}
	if p.proto == "udp" {
		allowed := make(map[netip.AddrPort]struct{}, len(targets))
		for _, ep := range targets {
			allowed[ep.addr] = struct{}{}
		}
		f.udp = append(f.udp, udpPort{addr: addr, port: uint16(port), targets: allowed})
	}
}

func (p *portPlan) internalLocalOnly() bool {
	policy := p.svc.Spec.InternalTrafficPolicy
	return policy != nil && *policy == corev1.ServiceInternalTrafficPolicyLocal
}

func (p *portPlan) externalLocalOnly() bool {
	return p.svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func (p *portPlan) internalTargets() []endpoint {
	if p.internalLocalOnly() {
		return p.local
	}
	return p.cluster
}

func (p *portPlan) externalTargets() []endpoint {
	if p.externalLocalOnly() {
		// Pods and this node may use all endpoints, whatever the policy.
		return append(slices.Clone(p.cluster), p.local...)
	}
	return p.cluster
}

func (p *portPlan) internalVerdict(f *fragment) string {
	switch {
	case len(p.cluster) == 0 && len(p.local) == 0:
		return refused
	case !p.internalLocalOnly():
		return "goto " + p.balance(f, "cluster", p.cluster)
	case len(p.local) == 0:
		return verdictDrop
	default:
		return "goto " + p.balance(f, "local", p.local)
	}
}

// externalVerdict returns the verdict for traffic to a NodePort or an external address.
// With policy Cluster the traffic is masqueraded, so that replies return through this node.
// With policy Local the source address is kept and only local endpoints are used, except
// for clients inside the cluster, which could reach the other endpoints anyway.
func (p *portPlan) externalVerdict(f *fragment) string {
	if len(p.cluster) == 0 && len(p.local) == 0 {
		return refused
	}
	chain := "external-" + p.name
	mark := "meta mark set meta mark | " + masqueradeMark
	if !p.externalLocalOnly() {
		f.chains[chain] = []string{mark, "goto " + p.balance(f, "cluster", p.cluster)}
		return "goto " + chain
	}
	all := p.balance(f, "cluster", p.cluster)
	last := "drop"
	if len(p.local) > 0 {
		last = "goto " + p.balance(f, "local", p.local)
	}
	f.chains[chain] = []string{
		"ip saddr " + p.node.ClusterCIDR.String() + " goto " + all,
		"fib saddr type local " + mark + " goto " + all,
		last,
	}
	return "goto " + chain
}

// restrict applies a verdict only to traffic from the given source ranges, and drops the
// rest.
func (p *portPlan) restrict(f *fragment, ranges []netip.Prefix, verdict string) string {
	chain := "sources-" + p.name
	rules := make([]string, 0, len(ranges)+1)
	for _, r := range ranges {
		rules = append(rules, "ip saddr "+r.String()+" "+verdict)
	}
	f.chains[chain] = append(rules, "drop")
	return "goto " + chain
}

// balance adds the chain that picks one of the endpoints, and returns its name.
//
// A packet that is inside a chain while a transaction replaces the chain continues through
// the old rules, but the elements of their anonymous maps are inactive from that moment, so
// its lookup finds nothing. The last rule needs no lookup and catches such packets; without
// it, about one in a thousand connections is refused during a rollout.
func (p *portPlan) balance(f *fragment, kind string, eps []endpoint) string {
	chain := kind + "-" + p.name
	if _, done := f.chains[chain]; done {
		return chain
	}
	if timeout, sticky := affinityOf(p.svc); sticky {
		f.chains[chain] = p.balanceSticky(f, eps, timeout)
		return chain
	}
	head := "meta l4proto " + p.proto + " dnat "
	if len(eps) == 1 {
		f.chains[chain] = []string{head + "to " + eps[0].addr.String()}
		return chain
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%sip to numgen random mod %d map { ", head, len(eps))
	for i, ep := range eps {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d : %s . %d", i, ep.addr.Addr(), ep.addr.Port())
	}
	b.WriteString(" }")
	f.chains[chain] = []string{b.String(), head + "to " + eps[0].addr.String()}
	return chain
}

// balanceSticky gives each endpoint a set of its recent clients, and a chain that renews
// the client's entry.
func (p *portPlan) balanceSticky(f *fragment, eps []endpoint, timeout time.Duration) []string {
	rules := make([]string, 0, len(eps)+1)
	picks := make([]string, 0, len(eps))
	for i, ep := range eps {
		id := fmt.Sprintf("%s-%s/%d", p.name, ep.addr.Addr(), ep.addr.Port())
		set := fmt.Sprintf(clientsPrefix+"%d-%s", int(timeout/time.Second), id)
		chain := "endpoint-" + id
		f.affinity[set] = timeout
		f.chains[chain] = []string{
			"update @" + set + " { ip saddr }",
			"meta l4proto " + p.proto + " dnat to " + ep.addr.String(),
		}
		rules = append(rules, "ip saddr @"+set+" goto "+chain)
		picks = append(picks, fmt.Sprintf("%d : goto %s", i, chain))
	}
	return append(rules,
		fmt.Sprintf("numgen random mod %d vmap { %s }", len(eps), strings.Join(picks, " , ")),
		strings.TrimPrefix(picks[0], "0 : ")) // see balance
}

// addHairpin allows a local pod to reach itself through the Service: the packet must not
// come back with the pod's own address as its source. See state.hairpins.
func (p *portPlan) addHairpin(f *fragment) {
	for _, ep := range p.all {
		if !ep.local || slices.Contains(p.node.Addresses, ep.addr.Addr()) {
			continue
		}
		ip := ep.addr.Addr().String()
		f.hairpins = append(f.hairpins, ip+" . "+ip)
	}
}
