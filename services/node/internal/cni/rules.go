package cni

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"
)

// TableName is the name of this package's table, in the family ip.
const TableName = "keelson-cni"

// ruleset contains everything that the table depends on.
type ruleset struct {
	podCIDR, clusterCIDR netip.Prefix
	masquerade           bool
	nodes                []netip.Addr
	hostPorts            []HostPort
}

func (r ruleset) equal(o ruleset) bool {
	return r.podCIDR == o.podCIDR && r.clusterCIDR == o.clusterCIDR && r.masquerade == o.masquerade &&
		slices.Equal(r.nodes, o.nodes) && slices.Equal(r.hostPorts, o.hostPorts)
}

// replace replaces the table in one transaction. The table is small: one element per node
// and host port.
func (r ruleset) replace(ctx context.Context, nft knftables.Interface) error {
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	r.into(tx)
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("replace table %s: %w", TableName, err)
	}
	return nil
}

func (r ruleset) into(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("the pod network of this node; written by keelson")})
	tx.Add(&knftables.Set{Name: "nodes", Type: "ipv4_addr"})
	for _, a := range r.nodes {
		tx.Add(&knftables.Element{Set: "nodes", Key: []string{a.String()}})
	}
	r.hostPortRules(tx)
	base(tx, "postrouting", knftables.PostroutingHook, knftables.SNATPriority)
	rule := func(parts ...any) {
		tx.Add(&knftables.Rule{Chain: "postrouting", Rule: knftables.Concat(parts...)})
	}
	rule("ct status dnat ip saddr . ip daddr @hairpin masquerade")
	if len(r.hostPorts) > 0 {
		rule("ct status dnat ip saddr 127.0.0.0/8 ip daddr != 127.0.0.0/8 masquerade")
	}
	if r.masquerade {
		// Multicast and traffic within the cluster keep their source address. Nodes are
		// listed individually, because a pod range may be part of the nodes' own network.
		rule("ip saddr", r.podCIDR.Masked(), "ip daddr !=", r.clusterCIDR.Masked(),
			"ip daddr != 224.0.0.0/4 ip daddr != @nodes masquerade fully-random")
	}
}

func base(tx *knftables.Transaction, name string, hook knftables.BaseChainHook, priority knftables.BaseChainPriority) {
	kind := knftables.NATType
	tx.Add(&knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority})
}
