package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"

	"keelson.dev/services/node/internal/link"
	"keelson.dev/services/node/internal/nftwatch"
)

// errUnknown is the error of a pass before everything has been read.
var errUnknown = errors.New("not everything that network policies depend on has been read")

// syncer holds what is in the kernel. It is used only by the goroutine of Run.
type syncer struct {
	e     *Enforcer
	nft   knftables.Interface
	watch *nftwatch.Watch
	// compiled are the policies by uid.
	compiled map[types.UID]*Policy
	// links are the interfaces of pods.
	links map[sandbox]string
	// full makes the next pass replace the whole table; otherwise the kernel has inForce.
	full    bool
	inForce *table
	// uncut are rules that were applied before the connections that they forbid could be ended.
	uncut *Ruleset
	last  time.Time
}

// sandbox is a pod from when it got an address until it loses it: another sandbox has another
// interface, even if it has the same address.
type sandbox struct {
	uid  types.UID
	addr netip.Addr
	born uint64
}

func (s *syncer) repair(ctx context.Context) {
	s.e.log.WarnContext(ctx, "rules of network policies were changed by another program, repairing them", "table", TableName)
	s.e.cfg.Metrics.repaired()
	s.full = true
}

// pass brings the table up to date.
func (s *syncer) pass(ctx context.Context) (a Applied, err error) {
	begin := time.Now()
	defer func() { s.last = time.Now(); s.e.report(err) }()
	if s.uncut != nil {
		s.cut(ctx, s.uncut, &a)
	}
	in, seq, err := s.input()
	if err != nil {
		return a, err
	}
	a.Policies, a.Full = len(in.Policies), s.full
	if len(in.Policies) == 0 && !slices.ContainsFunc(in.Locals, func(l Local) bool { return l.Unknown }) {
		if s.full || s.inForce != nil {
			if err := s.remove(ctx); err != nil {
				return a, err
			}
		}
		s.full, s.inForce = false, nil
		s.e.finish(seq, nil, true)
		a.Took = time.Since(begin)
		return a, nil
	}
	if err := s.findLinks(in.Locals); err != nil {
		return a, err
	}
	planned := time.Now()
	rules := Plan(in)
	a.Planned = time.Since(planned)
	next := render(rules)
	a.Isolated = len(next.sets[setIsolated].elements)
	tx := s.nft.NewTransaction()
	tighter := true
	if s.full || s.inForce == nil {
		a.Full = true
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		next.create(tx)
	} else {
		tighter = s.inForce.update(tx, next)
	}
	if a.Operations = tx.NumOperations(); a.Operations > 0 {
		run := s.watch.Own
		if a.Full {
			run = s.watch.Repair
		}
		run(func() { err = s.nft.Run(ctx, tx) })
		if err != nil {
			return a, fmt.Errorf("nftables: %w", err)
		}
	}
	s.full, s.inForce = false, next
	if tighter {
		s.cut(ctx, rules, &a)
	}
	s.e.finish(seq, in.Locals, false)
	a.Took = time.Since(begin)
	return a, nil
}

// input reads everything that a plan depends on.
func (s *syncer) input() (Input, uint64, error) {
	e := s.e
	e.mu.Lock()
	known, seq := e.known, e.seq
	locals := slices.Collect(maps.Values(e.locals))
	e.mu.Unlock()
	// The locals are read before the policies: those that were confirmed for a pod are then seen.
	policies, read := e.cfg.Source.Policies()
	if !known || !read {
		return Input{}, 0, errUnknown
	}
	in := Input{Policies: s.compile(policies), Locals: locals}
	if len(policies) == 0 {
		return in, seq, nil
	}
	if in.Pods, read = e.cfg.Source.Pods(); !read {
		return Input{}, 0, errUnknown
	}
	in.Namespaces, in.Ranges = e.cfg.Source.Namespaces(), e.cfg.Source.Ranges()
	return in, seq, nil
}

func (s *syncer) compile(list []*networkingv1.NetworkPolicy) []*Policy {
	next := make(map[types.UID]*Policy, len(list))
	out := make([]*Policy, len(list))
	for i, p := range list {
		c := s.compiled[p.UID]
		if c == nil || c.version != p.ResourceVersion {
			c = Compile(p)
		}
		next[p.UID], out[i] = c, c
	}
	s.compiled = next
	return out
}

// findLinks sets the interfaces of pods. A pod that has ended has none.
func (s *syncer) findLinks(locals []Local) error {
	found := make(map[sandbox]string, len(locals))
	var links map[netip.Addr]string
	for i := range locals {
		l := &locals[i]
		box := sandbox{l.UID(), l.Pod.Addr, l.born}
		if l.Link = s.links[box]; l.Link == "" {
			if links == nil {
				var err error
				if links, err = routedLinks(); err != nil {
					return err
				}
			}
			l.Link = links[l.Pod.Addr]
		}
		found[box] = l.Link
	}
	s.links = found
	return nil
}

// routedLinks returns the interfaces to which single addresses are routed.
func routedLinks() (map[netip.Addr]string, error) {
	routes, err := link.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	links, err := link.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	out := map[netip.Addr]string{}
	for i := range routes {
		r := &routes[i]
		if r.Dst == nil || r.Gw != nil {
			continue
		}
		if ones, bits := r.Dst.Mask.Size(); ones != 32 || bits != 32 {
			continue
		}
		if addr, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			out[addr] = names[r.LinkIndex]
		}
	}
	return out, nil
}

func (s *syncer) remove(ctx context.Context) (err error) {
	tx := s.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	s.watch.Repair(func() { err = s.nft.Run(ctx, tx) })
	if err != nil {
		return fmt.Errorf("remove table %s: %w", TableName, err)
	}
	return nil
}

// finish records that the kernel has the changes up to seq. locals are the pods that the rules know;
// idle is true if there are no policies.
func (e *Enforcer) finish(seq uint64, locals []Local, idle bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done, e.idle = seq, idle
	e.inForce = make(map[types.UID]netip.Addr, len(locals))
	for i := range locals {
		if l := &locals[i]; l.Link != "" {
			e.inForce[l.UID()] = l.Pod.Addr
		}
	}
}

// report wakes who waits for a pass.
func (e *Enforcer) report(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lastErr = err
	close(e.passed)
	e.passed = make(chan struct{})
}
