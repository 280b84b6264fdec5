package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// TestHostileNodes gives a node two honest peers, a (10.244.1.0/24, old) and b
// (10.244.2.0/24, newer), and one further Node. The routes to a and b must not change.
func TestHostileNodes(t *testing.T) {
	cfg := &RunConfig{
		NodeName: "self", NodeIP: netip.MustParseAddr("192.168.0.1"), PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
	}
	node := func(name string, age time.Duration, address string, cidrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))}}
		n.Spec.PodCIDRs = cidrs
		if len(cidrs) > 0 {
			n.Spec.PodCIDR = cidrs[0]
		}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}}
		return n
	}
	honest := []string{"10.244.1.0/24 via 192.168.0.2", "10.244.2.0/24 via 192.168.0.3"}
	for name, test := range map[string]struct {
		hostile *corev1.Node
		routes  []string // in addition to the honest ones
		refused string
	}{
		"an honest node":                 {node("x", 0, "192.168.0.9", "10.244.3.0/24"), []string{"10.244.3.0/24 via 192.168.0.9"}, ""},
		"another's range":                {node("x", 0, "192.168.0.9", "10.244.1.0/24"), nil, "10.244.1.0/24 of node x overlaps 10.244.1.0/24 of node a"},
		"another's, sorted before":       {node("Aa", 0, "192.168.0.9", "10.244.1.0/24"), nil, "overlaps 10.244.1.0/24 of node a"},
		"part of another's":              {node("x", 0, "192.168.0.9", "10.244.2.128/25"), nil, "overlaps 10.244.2.0/24 of node b"},
		"a range around others'":         {node("x", 0, "192.168.0.9", "10.244.0.0/20"), nil, "overlaps"},
		"the whole cluster":              {node("x", 0, "192.168.0.9", "10.244.0.0/16"), nil, "overlaps"},
		"this node's":                    {node("x", 0, "192.168.0.9", "10.244.0.0/24"), nil, "overlaps 10.244.0.0/24 of node self"},
		"this node's, although older":    {node("x", time.Hour, "192.168.0.9", "10.244.0.7/32"), nil, "of node self"},
		"everything":                     {node("x", time.Hour, "192.168.0.9", "0.0.0.0/0"), nil, "outside the cluster's range"},
		"around the cluster's":           {node("x", time.Hour, "192.168.0.9", "10.0.0.0/8"), nil, "outside the cluster's range"},
		"an address of the internet":     {node("x", time.Hour, "192.168.0.9", "8.8.8.8/32"), nil, "outside the cluster's range"},
		"the services":                   {node("x", time.Hour, "192.168.0.9", "10.96.0.0/24"), nil, "outside the cluster's range"},
		"the nodes":                      {node("x", time.Hour, "192.168.0.9", "192.168.0.0/24"), nil, "outside the cluster's range"},
		"a second range":                 {node("x", 0, "192.168.0.9", "10.244.3.0/24", "10.244.1.0/24"), []string{"10.244.3.0/24 via 192.168.0.9"}, "of node a"},
		"IPv6 and nonsense":              {node("x", 0, "192.168.0.9", "fd00::/64", "x"), nil, ""},
		"another's address":              {node("x", 0, "192.168.0.2", "10.244.3.0/24"), nil, "address 192.168.0.2 of node x belongs to node a"},
		"the services' address":          {node("x", 0, "10.96.0.1", "10.244.3.0/24"), nil, ""},
		"this node's address":            {node("x", 0, "192.168.0.1", "10.244.3.0/24"), nil, ""},
		"a loopback address":             {node("x", 0, "127.0.0.1", "10.244.3.0/24"), nil, ""},
		"a pod's address":                {node("x", 0, "10.244.1.7", "10.244.3.0/24"), nil, ""},
		"no address, and another's pods": {node("x", 0, "", "10.244.1.0/24"), nil, "of node a"},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := []*corev1.Node{node("b", time.Minute, "192.168.0.3", "10.244.2.0/24"), test.hostile, node("self", 0, "192.168.0.1", "10.244.0.0/24"), node("a", 2*time.Minute, "192.168.0.2", "10.244.1.0/24")}
			peers, refused := peersOf(cfg, nodes, map[netip.Addr]string{})
			var got []string
			for _, r := range planRoutes(cfg.ClusterCIDR, peers, func(netip.Addr) bool { return true }) {
				if r.via.IsValid() {
					got = append(got, r.dst.String()+" via "+r.via.String())
				}
			}
			slices.Sort(got)
			want := slices.Sorted(slices.Values(slices.Concat(honest, test.routes)))
			if !slices.Equal(got, want) {
				t.Errorf("routes %q, want %q", got, want)
			}
			if text := strings.Join(refused, "; "); (test.refused == "") != (text == "") || !strings.Contains(text, test.refused) {
				t.Errorf("refused %q, want %q", text, test.refused)
			}
		})
	}
}

// TestAddressesStayWithTheirNodes checks that an address stays with the node that holds it,
// whatever the ages of the nodes that claim it, and that the addresses exempt from
// masquerading follow.
func TestAddressesStayWithTheirNodes(t *testing.T) {
	cfg := &RunConfig{
		NodeName: "self", NodeIP: netip.MustParseAddr("192.168.0.1"), PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
	}
	node := func(name string, age time.Duration, addresses ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))}}
		for _, a := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		return n
	}
	held := map[netip.Addr]string{}
	for _, step := range []struct {
		name  string
		nodes []*corev1.Node
		want  string // holders and their addresses
		open  string // addresses exempt from masquerading
	}{
		{"at first", []*corev1.Node{node("old", time.Hour, "192.168.0.2"), node("new", 0, "192.168.0.3")}, "new 192.168.0.3, old 192.168.0.2", "[192.168.0.1 192.168.0.2 192.168.0.3]"},
		{"the old one claims the new one's", []*corev1.Node{node("old", time.Hour, "192.168.0.3"), node("new", 0, "192.168.0.3")}, "new 192.168.0.3", "[192.168.0.1 192.168.0.3]"},
		{"beside its own", []*corev1.Node{node("old", time.Hour, "192.168.0.3", "10.244.1.1", "10.96.0.1", "192.168.0.2"), node("new", 0, "192.168.0.3")}, "new 192.168.0.3, old 192.168.0.2", "[192.168.0.1 192.168.0.2 192.168.0.3]"},
		{"the new one moves", []*corev1.Node{node("old", time.Hour, "192.168.0.3"), node("new", 0, "192.168.0.4")}, "new 192.168.0.4, old 192.168.0.3", "[192.168.0.1 192.168.0.3 192.168.0.4]"},
		{"the new one is gone", []*corev1.Node{node("old", time.Hour, "192.168.0.4")}, "old 192.168.0.4", "[192.168.0.1 192.168.0.4]"},
	} {
		peers, _ := peersOf(cfg, step.nodes, held)
		var got []string
		for _, p := range peers {
			got = append(got, p.name+" "+p.address.String())
		}
		if s := strings.Join(got, ", "); s != step.want {
			t.Errorf("%s: %q, want %q", step.name, s, step.want)
		}
		if s := fmt.Sprint(nodeAddresses(cfg.NodeIP, peers)); s != step.open {
			t.Errorf("%s: not masqueraded %s, want %s", step.name, s, step.open)
		}
	}
}

func TestOwnRangeIsTheClusters(t *testing.T) {
	c := RunConfig{
		NodeName: "self", NodeIP: netip.MustParseAddr("192.168.0.1"), PodCIDR: netip.MustParsePrefix("0.0.0.0/0"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		Nodes: new(client.Cache[*corev1.Node]),
	}
	if err := c.validate(); err == nil || !strings.Contains(err.Error(), "outside the cluster's range") {
		t.Errorf("got %v", err)
	}
}
