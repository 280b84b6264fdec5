package connlimit

import (
	"net/netip"
	"testing"
	"time"
)

// Addresses without connections are forgotten, by at most one sweep per second.
func TestAddressesAreForgotten(t *testing.T) {
	now := time.Unix(1e9, 0)
	l := Wrap(nil, Limits{Rate: 1000, Burst: 1, Now: func() time.Time { return now }})
	connect := func(i int) {
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		l.address(ip, false, now).opens.AllowN(now, 1)
	}
	for i := range maxAddresses + 10 {
		connect(i)
	}
	if n := len(l.addresses); n != maxAddresses+10 {
		t.Fatalf("%d addresses; none may be forgotten, as all have just connected", n)
	}
	now = now.Add(sweepEvery / 2)
	connect(1 << 20)
	if n := len(l.addresses); n != maxAddresses+11 {
		t.Errorf("%d addresses: swept twice in a second", n)
	}
	now = now.Add(sweepEvery / 2)
	connect(1<<20 + 1)
	if n := len(l.addresses); n != 1 {
		t.Errorf("%d addresses are left, want only the latest", n)
	}
}
