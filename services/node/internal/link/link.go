// Package link makes the local network interfaces that hold a node's own
// addresses and routes.
//
// It must never change an interface that it did not make.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ensure returns the interface with this name, up, and makes it when it is not
// there: a dummy, or a bridge without ports where the kernel has no dummies.
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

// EnsureAddress gives an interface an address of its own (a /32).
func EnsureAddress(l netlink.Link, addr netip.Addr) error {
	err := netlink.AddrReplace(l, &netlink.Addr{IPNet: Network(netip.PrefixFrom(addr, addr.BitLen()))})
	if err != nil {
		return fmt.Errorf("address %s on %s: %w", addr, l.Attrs().Name, err)
	}
	return nil
}

// Remove removes an interface; one that is not there is no error.
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

// Network converts a prefix to the form that netlink takes. The address keeps
// its host bits.
func Network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
