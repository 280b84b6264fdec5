package proxy

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
)

// syncer applies the desired state to the table.
type syncer struct {
	node  Node
	nft   knftables.Interface
	state *state
	// full makes the next sync replace the whole table.
	full      bool
	conflicts []conflict
	// udpChanged is true if the targets of a UDP port have changed since stale flows were
	// last removed.
	udpChanged bool
	// clients reads each endpoint's recent clients before the table is replaced. It may be
	// nil.
	clients func(ctx context.Context) map[string][]string
	// gone are the UDP fronts that no longer belong to any Service.
	gone []udpPort
}

func newSyncer(node Node, nft knftables.Interface) *syncer {
	return &syncer{node: node, nft: nft, state: newState()}
}

// setZone sets the node's zone. A new zone affects the hints of all Services.
func (s *syncer) setZone(zone string) {
	if zone != s.node.Zone {
		s.node.Zone = zone
		s.full = true
	}
}

// sync updates the table from the listing. It looks only at the given Services unless a
// full sync is due. After an error the table is unchanged, and the caller must request a
// full sync.
func (s *syncer) sync(ctx context.Context, list Listing, keys []types.NamespacedName) (Applied, error) {
	if s.full || len(s.state.hairpins) > maxHairpins {
		return s.replace(ctx, list)
	}
	d := newDelta()
	for _, key := range keys {
		var f *fragment
		if svc, ok := list.Service(key.Namespace, key.Name); ok {
			f = plan(s.node, svc, list.ServiceSlices(key.Namespace, key.Name))
		}
		s.noteUDP(s.state.fragments[key], f)
		s.state.put(key, f, d)
	}
	s.conflicts = append(s.conflicts, d.conflicts...)
	if d.empty() {
		return Applied{Services: len(keys)}, nil
	}
	tx := s.nft.NewTransaction()
	d.into(tx)
	if err := s.nft.Run(ctx, tx); err != nil {
		return Applied{}, fmt.Errorf("apply change to table %s: %w", TableName, err)
	}
	return Applied{Services: len(keys), Operations: tx.NumOperations()}, nil
}

// replace rebuilds the table. The old and the new table are exchanged in one transaction.
func (s *syncer) replace(ctx context.Context, list Listing) (Applied, error) {
	next := newState()
	d := newDelta()
	services := list.Services()
	for _, svc := range services {
		key := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
		if f := plan(s.node, svc, list.ServiceSlices(svc.Namespace, svc.Name)); f != nil {
			next.put(key, f, d)
		}
	}
	tx := s.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	skeleton(tx, s.node)
	d.into(tx)
	if s.clients != nil && len(d.newSets) > 0 {
		carryOver(tx, d.newSets, s.clients(ctx))
	}
	if err := s.nft.Run(ctx, tx); err != nil {
		return Applied{}, fmt.Errorf("replace table %s: %w", TableName, err)
	}
	s.state = next
	s.full = false
	s.udpChanged = true
	s.conflicts = append(s.conflicts, d.conflicts...)
	return Applied{Services: len(services), Full: true, Operations: tx.NumOperations()}, nil
}

func (s *syncer) noteUDP(old, next *fragment) {
	var a, b []udpPort
	if old != nil {
		a = old.udp
	}
	if next != nil {
		b = next.udp
	}
	if slices.EqualFunc(a, b, udpPort.equal) {
		return
	}
	s.udpChanged = true
	for _, u := range a {
		if !slices.ContainsFunc(b, u.sameFront) {
			s.gone = append(s.gone, udpPort{addr: u.addr, port: u.port})
		}
	}
}

func (u udpPort) sameFront(v udpPort) bool { return u.addr == v.addr && u.port == v.port }

func (u udpPort) equal(v udpPort) bool {
	if !u.sameFront(v) || len(u.targets) != len(v.targets) {
		return false
	}
	for t := range u.targets {
		if _, ok := v.targets[t]; !ok {
			return false
		}
	}
	return true
}

func (s *syncer) takeConflicts() []conflict {
	c := s.conflicts
	s.conflicts = nil
	return c
}

func (s *syncer) health() []localHealth {
	var out []localHealth
	for _, f := range s.state.fragments {
		if f.health != nil {
			out = append(out, *f.health)
		}
	}
	return out
}
