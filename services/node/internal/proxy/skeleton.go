package proxy

import (
	"strings"
	"time"

	"sigs.k8s.io/knftables"
)

// affinityClients bounds the clients in the set of one endpoint.
const affinityClients = 65536

// skeleton adds the fixed part of the table: the hooks, and the sets and maps that hold the
// Services' elements.
func skeleton(tx *knftables.Transaction, node Node) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Services on this node; written by keelson")})
	const frontType = "ipv4_addr . inet_proto . inet_service : verdict"
	const portType = "inet_proto . inet_service : verdict"
	for _, m := range []knftables.Map{
		{Name: mapIPs, Type: frontType},
		{Name: mapNodePorts, Type: portType},
		{Name: mapDeadIPs, Type: frontType},
		{Name: mapDeadPorts, Type: portType},
	} {
		tx.Add(&m)
	}
	for _, s := range []knftables.Set{
		{Name: setClusterIPs, Type: "ipv4_addr"},
		{Name: setHairpin, Type: "ipv4_addr . ipv4_addr"},
		{Name: setNodeIPs, Type: "ipv4_addr"},
	} {
		tx.Add(&s)
	}
	for _, a := range node.Addresses {
		tx.Add(&knftables.Element{Set: setNodeIPs, Key: []string{a.String()}})
	}

	base := func(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority, rules ...string) {
		tx.Add(&knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority})
		for _, r := range rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: r})
		}
	}
	regular := func(name string, rules ...string) {
		tx.Add(&knftables.Chain{Name: name})
		for _, r := range rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: r})
		}
	}

	// A TCP client gets a reset, any other a port unreachable. Programs see both as
	// "connection refused".
	regular(chainRefuse, "meta l4proto tcp reject with tcp reset", "reject with icmp port-unreachable")
	regular("no-endpoints",
		"ip daddr . meta l4proto . th dport vmap @"+mapDeadIPs,
		"ip daddr @"+setNodeIPs+" meta l4proto . th dport vmap @"+mapDeadPorts)
	regular("services",
		"ip daddr . meta l4proto . th dport vmap @"+mapIPs,
		"ip daddr @"+setNodeIPs+" meta l4proto . th dport vmap @"+mapNodePorts)
	// A packet whose destination is still a ClusterIP after translation is for a port that
	// the Service does not have. Addresses that this node serves itself (cluster DNS) are
	// of type local.
	regular("unknown-port",
		"ip daddr @"+setClusterIPs+" fib daddr type != local goto "+chainRefuse,
		"ip daddr "+node.ServiceCIDR.String()+" fib daddr type != local goto "+chainRefuse)

	const before, after = knftables.DNATPriority + "-10", knftables.FilterPriority
	const beforeOut = "-110" // the name dstnat is valid for prerouting only
	base("refuse-prerouting", knftables.FilterType, knftables.PreroutingHook, before, "ct state new jump no-endpoints")
	base("refuse-output", knftables.FilterType, knftables.OutputHook, beforeOut, "ct state new jump no-endpoints")
	base("nat-prerouting", knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority, "jump services")
	base("nat-output", knftables.NATType, knftables.OutputHook, "-100", "jump services")
	base("filter-forward", knftables.FilterType, knftables.ForwardHook, after, "ct state new jump unknown-port")
	base("filter-output", knftables.FilterType, knftables.OutputHook, after, "ct state new jump unknown-port")
	// Masquerade three kinds of traffic: to a NodePort or an external address (marked);
	// from a client of a ClusterIP that is not a pod, because replies might take another
	// route; and from a pod to itself.
	base("nat-postrouting", knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority,
		"meta mark & "+masqueradeMark+" != 0 meta mark set meta mark & 0xffffbfff masquerade fully-random",
		"ct status dnat ct original ip daddr @"+setClusterIPs+" ip saddr != "+node.ClusterCIDR.String()+" masquerade fully-random",
		"ct status dnat ip saddr . ip daddr @"+setHairpin+" masquerade fully-random")
}

func (e element) object(value string) *knftables.Element {
	el := &knftables.Element{Key: strings.Split(e.key, " . ")}
	switch e.container {
	case setClusterIPs, setHairpin, setNodeIPs:
		el.Set = e.container
	default:
		el.Map = e.container
		el.Value = []string{value}
	}
	return el
}

func affinitySet(name string, timeout time.Duration) *knftables.Set {
	return &knftables.Set{
		Name: name, Type: "ipv4_addr",
		Flags:   []knftables.SetFlag{knftables.DynamicFlag, knftables.TimeoutFlag},
		Timeout: &timeout, Size: knftables.PtrTo[uint64](affinityClients),
	}
}
