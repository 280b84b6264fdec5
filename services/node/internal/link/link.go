// Package link manages the local network interfaces that hold a node's own addresses and
// routes.
//
// It must never change an interface that it did not create.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ensure returns the interface with the given name, set up. If it does not exist, Ensure
// creates it: a dummy, or a bridge without ports if the kernel does not support dummies.
func Ensure(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		l, err = add(name)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("interface %s up: %w", name, err)
	}
	return l, nil
}

func add(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return netlink.LinkByName(name)
}

// EnsureAddress assigns an address to an interface, as a /32.
func EnsureAddress(l netlink.Link, addr netip.Addr) error {
	err := netlink.AddrReplace(l, &netlink.Addr{IPNet: Network(netip.PrefixFrom(addr, addr.BitLen()))})
	if err != nil {
		return fmt.Errorf("address %s on %s: %w", addr, l.Attrs().Name, err)
	}
	return nil
}

// Remove removes an interface. It is not an error if the interface does not exist.
func Remove(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// Network converts a prefix to netlink's form. The address keeps its host bits.
func Network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
