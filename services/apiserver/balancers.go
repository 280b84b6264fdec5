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
	// lookUpEvery is how often the addresses of balancers are looked up that are given
	// by name, lookUpTime how long that may take.
	lookUpEvery = 10 * time.Second
	lookUpTime  = 5 * time.Second
)

// hostName is a DNS name with a letter in its last label: a mistyped address is none.
var hostName = regexp.MustCompile(`\A([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z]([-a-z0-9]{0,61}[a-z0-9])?\z`)

// balancers are addresses that stand for many clients.
type balancers struct {
	fixed  []netip.Prefix
	names  []string
	named  atomic.Pointer[[]netip.Prefix] // of names, as last looked up
	lookUp func(ctx context.Context, name string) ([]netip.Addr, error)
}

// parseBalancers reads addresses, CIDRs and host names.
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

// near reports whether a client address is a balancer's. IPv6 clients are counted by
// their /64.
func (b *balancers) near(ip netip.Addr) bool {
	client := netip.PrefixFrom(ip, ip.BitLen())
	if ip.Is6() {
		client = netip.PrefixFrom(ip, 64)
	}
	return slices.ContainsFunc(b.fixed, client.Overlaps) || slices.ContainsFunc(*b.named.Load(), client.Overlaps)
}

// follow looks up the names until ctx ends: a balancer that is started again may have
// another address.
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

// refresh looks up all names once. One that cannot be looked up keeps what it had; one
// that does not exist has nothing.
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
