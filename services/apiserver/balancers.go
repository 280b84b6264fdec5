package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// lookUpEvery is the interval at which the names of balancers are looked up, lookUpTime
	// the limit of one round.
	lookUpEvery = 10 * time.Second
	lookUpTime  = 5 * time.Second
)

// hostName matches a DNS name whose last label begins with a letter, so that no mistyped
// address does.
var hostName = regexp.MustCompile(`\A([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z]([-a-z0-9]{0,61}[a-z0-9])?\z`)

// balancers are addresses that each stand for many clients.
type balancers struct {
	fixed  []netip.Prefix
	names  []string
	named  atomic.Pointer[[]netip.Prefix] // the addresses of names, as last looked up
	lookUp func(ctx context.Context, name string) ([]netip.Addr, error)
}

// parseBalancers parses addresses, CIDRs and host names.
func parseBalancers(list []string) (*balancers, error) {
	b := &balancers{lookUp: func(ctx context.Context, name string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	}}
	b.named.Store(new([]netip.Prefix))
	for _, s := range list {
		prefix, err := netip.ParsePrefix(s)
		ip, ipErr := netip.ParseAddr(s)
		switch {
		case err == nil:
			b.fixed = append(b.fixed, prefix)
		case ipErr == nil:
			b.fixed = append(b.fixed, netip.PrefixFrom(ip, ip.BitLen()))
		case len(s) <= 253 && hostName.MatchString(strings.ToLower(s)):
			b.names = append(b.names, s)
		default:
			return nil, fmt.Errorf("%q: want an address, a CIDR or a host name", s)
		}
	}
	return b, nil
}

// near reports whether ip is the address of a balancer, for IPv6 whether a balancer is in its
// /64, as clients are counted by that.
func (b *balancers) near(ip netip.Addr) bool {
	client := netip.PrefixFrom(ip, ip.BitLen())
	if ip.Is6() {
		client = netip.PrefixFrom(ip, 64)
	}
	return slices.ContainsFunc(b.fixed, client.Overlaps) || slices.ContainsFunc(*b.named.Load(), client.Overlaps)
}

// follow looks up the names every lookUpEvery until ctx ends, as a balancer that is restarted
// may have another address.
func (b *balancers) follow(ctx context.Context) error {
	if len(b.names) == 0 {
		return nil
	}
	tick := time.NewTicker(lookUpEvery)
	defer tick.Stop()
	known := map[string][]netip.Prefix{}
	for {
		b.refresh(ctx, known)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// refresh looks up all names once. A name whose lookup fails keeps its addresses; one that
// does not exist loses them.
func (b *balancers) refresh(ctx context.Context, known map[string][]netip.Prefix) {
	ctx, cancel := context.WithTimeout(ctx, lookUpTime)
	defer cancel()
	var all []netip.Prefix
	for _, name := range b.names {
		addresses, err := b.lookUp(ctx, name)
		var dns *net.DNSError
		switch {
		case err == nil:
			known[name] = nil
			for _, a := range addresses {
				a = a.Unmap()
				known[name] = append(known[name], netip.PrefixFrom(a, a.BitLen()))
			}
		case errors.As(err, &dns) && dns.IsNotFound:
			delete(known, name)
		default:
			slog.DebugContext(ctx, "cannot look up a balancer", "name", name, "error", err)
		}
		all = append(all, known[name]...)
	}
	b.named.Store(&all)
}
