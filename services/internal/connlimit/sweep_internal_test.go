package connlimit

import (
	"net/netip"
	"testing"
	"time"
)

// Addresses without connections are forgotten, in one sweep a second at most.
func TestAddressesAreForgotten(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := Wrap(nil, Limits{Now: func() time.Time { return now }})
	ip := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range maxAddresses + 10 {
		l.address(ip(i), false, now)
	}
	if n := len(l.addresses); n != maxAddresses+10 {
		t.Fatalf("%d addresses; all of them have connected just now", n)
	}
	for _, a := range l.addresses {
		a.last = now.Add(-time.Hour)
	}
	l.address(ip(1<<20), false, now)
	if n := len(l.addresses); n != maxAddresses+11 {
		t.Errorf("%d addresses: swept twice in a second", n)
	}
	now = now.Add(sweepEvery)
	l.address(ip(1<<20+1), false, now)
	if n := len(l.addresses); n != 2 {
		t.Errorf("%d addresses are remembered, want those of the last second", n)
	}
}
