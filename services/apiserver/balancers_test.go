package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestParseBalancers(t *testing.T) {
	b, err := parseBalancers([]string{"192.0.2.1", "198.51.100.0/24", "2001:db8::5", "balancer", "lb-1.example.com"})
	if err != nil || len(b.fixed) != 3 || len(b.names) != 2 {
		t.Fatal(b, err)
	}
	for ip, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.2": false, "198.51.100.7": true, "2001:db8::": true, "2001:db8:1::": false, "::1": false,
	} {
		if b.near(netip.MustParseAddr(ip)) != want {
			t.Errorf("%s is near: %v", ip, !want)
		}
	}
	for _, bad := range []string{"", "192.0.2.300", "192.0.2.1:80", "a b", "10.0.0.0/33", "-a", "a..b"} {
		if _, err := parseBalancers([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestBalancersAreFollowedByName(t *testing.T) {
	b, err := parseBalancers([]string{"balancer"})
	if err != nil {
		t.Fatal(err)
	}
	var answer []netip.Addr
	var failure error
	b.lookUp = func(context.Context, string) ([]netip.Addr, error) { return answer, failure }
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	known := map[string][]netip.Prefix{}
	for _, step := range []struct {
		name     string
		answer   []netip.Addr
		failure  error
		one, two bool
	}{
		{"found", []netip.Addr{netip.AddrFrom16(one.As16())}, nil, true, false},
		{"the name server is down", nil, errors.New("timeout"), true, false},
		{"moved", []netip.Addr{two}, nil, false, true},
		{"gone", nil, &net.DNSError{IsNotFound: true}, false, false},
	} {
		answer, failure = step.answer, step.failure
		b.refresh(t.Context(), known)
		if b.near(one) != step.one || b.near(two) != step.two {
			t.Errorf("%s: %v %v", step.name, b.near(one), b.near(two))
		}
	}
}
