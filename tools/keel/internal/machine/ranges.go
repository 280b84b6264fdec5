package machine

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// CheckRanges returns an error if one of the cluster's ranges, keyed by the flag that sets it,
// overlaps a network of this machine or another range. Packets for one would otherwise silently
// reach the other.
func CheckRanges(ranges map[string]string) error {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	var own []netip.Prefix
	for _, a := range addresses {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.IsLoopback() {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if !ok {
			continue
		}
		ones, _ := n.Mask.Size()
		own = append(own, netip.PrefixFrom(ip.Unmap(), ones))
	}
	return checkRanges(ranges, own)
}

func checkRanges(ranges map[string]string, own []netip.Prefix) error {
	var before []string
	for _, flag := range slices.Sorted(maps.Keys(ranges)) {
		r, err := netip.ParsePrefix(ranges[flag])
		if err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
		for _, o := range own {
			if r.Overlaps(o) {
				return fmt.Errorf("%s %s overlaps the network %s of this machine: choose another range for one of them", flag, r, o.Masked())
			}
		}
		for _, other := range before {
			if r.Overlaps(netip.MustParsePrefix(ranges[other])) {
				return fmt.Errorf("%s %s overlaps %s %s: choose another range for one of them", flag, r, other, ranges[other])
			}
		}
		before = append(before, flag)
	}
	return nil
}
