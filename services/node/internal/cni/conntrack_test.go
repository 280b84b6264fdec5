package cni

import (
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keelson.dev/services/node/internal/conntrack"
)

// TestStaleFlows checks that flows to a changed UDP host port end unless they go where a
// new flow would go.
func TestStaleFlows(t *testing.T) {
	at := netip.MustParseAddrPort
	f := &flowFilter{
		changed: map[uint16]bool{53: true, 54: true, 55: true},
		local:   map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true, netip.MustParseAddr("192.0.2.2"): true},
		current: []HostPort{
			{Protocol: "udp", HostPort: 53, Target: at("10.0.0.5:5353")},
			{Protocol: "udp", HostPort: 53, HostIP: netip.MustParseAddr("192.0.2.2"), Target: at("10.0.0.6:5353")},
			{Protocol: "tcp", HostPort: 54, Target: at("10.0.0.7:54")},
		},
	}
	for _, c := range []struct {
		front, target string
		proto         uint8
		want          bool
	}{
		{"192.0.2.1:53", "10.0.0.5:5353", unix.IPPROTO_UDP, false},
		{"192.0.2.1:53", "10.0.0.4:5353", unix.IPPROTO_UDP, true}, // a former pod
		{"192.0.2.1:53", "10.0.0.5:53", unix.IPPROTO_UDP, true},
		{"192.0.2.1:53", "192.0.2.1:53", unix.IPPROTO_UDP, true}, // from before the pod
		{"127.0.0.1:53", "10.0.0.4:5353", unix.IPPROTO_UDP, true},
		{"192.0.2.2:53", "10.0.0.6:5353", unix.IPPROTO_UDP, false}, // a port bound to this address
		{"192.0.2.2:53", "10.0.0.5:5353", unix.IPPROTO_UDP, true},
		{"192.0.2.1:54", "10.0.0.7:54", unix.IPPROTO_UDP, true},   // released: the remaining host port is TCP
		{"192.0.2.1:55", "192.0.2.1:55", unix.IPPROTO_UDP, false}, // the node's own program
		{"198.51.100.1:53", "198.51.100.1:53", unix.IPPROTO_UDP, false},
		{"192.0.2.1:56", "10.0.0.4:5353", unix.IPPROTO_UDP, false}, // unchanged
		{"192.0.2.1:53", "10.0.0.4:5353", unix.IPPROTO_TCP, false},
	} {
		front, target := at(c.front), at(c.target)
		flow := &netlink.ConntrackFlow{}
		flow.Forward.Protocol, flow.Forward.DstIP, flow.Forward.DstPort = c.proto, net.IP(front.Addr().AsSlice()), front.Port()
		flow.Reverse.SrcIP, flow.Reverse.SrcPort = net.IP(target.Addr().AsSlice()), target.Port()
		if got := conntrack.Stale(f.stale).MatchConntrackFlow(flow); got != c.want {
			t.Errorf("%s answered by %s: %v", c.front, c.target, got)
		}
	}
}

func TestUDPChanges(t *testing.T) {
	at := netip.MustParseAddrPort
	a := HostPort{Protocol: "udp", HostPort: 1, Target: at("10.0.0.1:1")}
	b := HostPort{Protocol: "udp", HostPort: 2, Target: at("10.0.0.1:2")}
	moved := HostPort{Protocol: "udp", HostPort: 2, Target: at("10.0.0.2:2")}
	tcp := HostPort{Protocol: "tcp", HostPort: 3, Target: at("10.0.0.1:3")}
	for _, c := range []struct {
		before, after []HostPort
		want          map[uint16]bool
	}{
		{nil, []HostPort{a, tcp}, map[uint16]bool{1: true}},
		{[]HostPort{a, b}, []HostPort{b, a}, map[uint16]bool{}},
		{[]HostPort{a, b}, []HostPort{a, moved}, map[uint16]bool{2: true}},
		{[]HostPort{a, tcp}, nil, map[uint16]bool{1: true}},
	} {
		if got := udpChanges(c.before, c.after); !reflect.DeepEqual(got, c.want) {
			t.Errorf("from %v to %v: %v", c.before, c.after, got)
		}
	}
}
