package cni

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"sigs.k8s.io/knftables"
)

// HostPort is a port of the node that forwards to a pod.
type HostPort struct {
	// HostIP is the only address that forwards. The zero Addr means every address of the
	// node.
	HostIP netip.Addr
	// Protocol is TCP, UDP or SCTP, in upper or lower case.
	Protocol string
	// HostPort is the port of the node, and Target is the pod's address and port.
	HostPort uint16
	Target   netip.AddrPort
}

// HostPorts holds the host ports of this node's pods. A nil *HostPorts holds none. The
// portmap plugin is not used, because it would write iptables rules in addition to the
// nftables rules used everywhere else, and would leave them behind if a node died during a
// deletion.
type HostPorts struct {
	mu    sync.Mutex
	pods  map[string][]HostPort
	known bool // Replace has been called
	wake  chan struct{}
}

// NewHostPorts returns an empty set. It counts as unknown until Replace is called.
func NewHostPorts() *HostPorts {
	return &HostPorts{pods: map[string][]HostPort{}, wake: make(chan struct{}, 1)}
}

// Set replaces a pod's host ports. An empty list removes them. key identifies the pod, for
// example by its UID.
func (h *HostPorts) Set(key string, ports []HostPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old, had := h.pods[key]
	if len(ports) == 0 {
		if !had {
			return
		}
		delete(h.pods, key)
	} else {
		if had && slices.Equal(old, ports) {
			return
		}
		h.pods[key] = slices.Clone(ports)
	}
	nudge(h.wake)
}

// Replace sets the host ports of all pods at once. It must be called after a start: until
// then Run leaves the table as the previous process left it, so that running pods keep their
// host ports.
func (h *HostPorts) Replace(pods map[string][]HostPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = true
	h.pods = make(map[string][]HostPort, len(pods))
	for k, v := range pods {
		h.pods[k] = slices.Clone(v)
	}
	nudge(h.wake)
}

func (h *HostPorts) changed() <-chan struct{} {
	if h == nil {
		return nil
	}
	return h.wake
}

// take returns the host ports in order, one per address, protocol and port. If two pods
// claim the same one, the pod whose key sorts first gets it. known is false before the first
// Replace.
func (h *HostPorts) take() (list []HostPort, known bool) {
	if h == nil {
		return nil, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	keys := make([]string, 0, len(h.pods))
	for k := range h.pods {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	type front struct {
		ip    netip.Addr
		proto string
		port  uint16
	}
	taken := map[front]bool{}
	var out []HostPort
	for _, k := range keys {
		for _, p := range h.pods[k] {
			p.Protocol = strings.ToLower(cmp.Or(p.Protocol, "tcp"))
			if p.HostIP.IsValid() && p.HostIP.IsUnspecified() {
				p.HostIP = netip.Addr{}
			}
			f := front{p.HostIP, p.Protocol, p.HostPort}
			if !p.Target.Addr().Is4() || p.HostPort == 0 || taken[f] {
				continue
			}
			taken[f] = true
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b HostPort) int {
		return cmp.Or(a.HostIP.Compare(b.HostIP), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostPort, b.HostPort))
	})
	return out, h.known
}

func (r ruleset) hostPortRules(tx *knftables.Transaction) {
	tx.Add(&knftables.Map{Name: "hostports", Type: "inet_proto . inet_service : ipv4_addr . inet_service"})
	tx.Add(&knftables.Map{Name: "hostports-at", Type: "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"})
	tx.Add(&knftables.Set{Name: "hairpin", Type: "ipv4_addr . ipv4_addr"})
	hairpin := map[netip.Addr]bool{}
	for _, p := range r.hostPorts {
		key := []string{p.Protocol, strconv.Itoa(int(p.HostPort))}
		name := "hostports"
		if p.HostIP.IsValid() {
			name, key = "hostports-at", append([]string{p.HostIP.String()}, key...)
		}
		target := p.Target.Addr().String()
		tx.Add(&knftables.Element{Map: name, Key: key, Value: []string{target, strconv.Itoa(int(p.Target.Port()))}})
		if !hairpin[p.Target.Addr()] {
			hairpin[p.Target.Addr()] = true
			tx.Add(&knftables.Element{Set: "hairpin", Key: []string{target, target}})
		}
	}
	tx.Add(&knftables.Chain{Name: "hostport"})
	// Without host ports there are no lookup rules, so connections pay nothing.
	if len(r.hostPorts) > 0 {
		for _, rule := range []string{
			"meta l4proto { tcp, udp, sctp } dnat ip to ip daddr . meta l4proto . th dport map @hostports-at",
			"fib daddr type local meta l4proto { tcp, udp, sctp } dnat ip to meta l4proto . th dport map @hostports",
		} {
			tx.Add(&knftables.Rule{Chain: "hostport", Rule: rule})
		}
	}
	// The node also reaches its own host ports on loopback, which requires the sysctl
	// route_localnet. The sysctl would also admit packets with loopback addresses from
	// outside, so these are dropped before anything else.
	raw, filter, hook := knftables.RawPriority, knftables.FilterType, knftables.PreroutingHook
	tx.Add(&knftables.Chain{Name: "martian", Type: &filter, Hook: &hook, Priority: &raw})
	if len(r.hostPorts) > 0 {
		tx.Add(&knftables.Rule{Chain: "martian", Rule: "iif != lo ip daddr 127.0.0.0/8 drop"})
		tx.Add(&knftables.Rule{Chain: "martian", Rule: "iif != lo ip saddr 127.0.0.0/8 drop"})
	}
	base(tx, "prerouting", knftables.PreroutingHook, knftables.DNATPriority+"+5")
	tx.Add(&knftables.Rule{Chain: "prerouting", Rule: "jump hostport"})
	base(tx, "output", knftables.OutputHook, "-95")
	tx.Add(&knftables.Rule{Chain: "output", Rule: "jump hostport"})
}
