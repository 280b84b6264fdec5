package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keelson.dev/services/node/internal/link"
)

// The overlay is a VXLAN for nodes that are not on the same network. It needs no exchange
// of information: the hardware address of a node's end is derived from the node's IP
// address, and its address on the overlay is the first address of the node's pod range,
// which host-local never assigns.
const (
	overlayName = "keelson-vx"
	overlayVNI  = 75
	overlayPort = 8472
	// overlayCost is the number of bytes that VXLAN adds to a packet: the outer IP, UDP,
	// VXLAN and inner Ethernet headers (RFC 7348, section 5).
	overlayCost = 20 + 8 + 8 + 14
)

type overlay struct{ link netlink.Link }

func ensureOverlay(cfg RunConfig) (*overlay, error) {
	l, err := netlink.LinkByName(overlayName)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		if l, err = addOverlay(cfg); err != nil {
			return nil, fmt.Errorf("overlay %s: %w", overlayName, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("overlay %s: %w", overlayName, err)
	}
	if err := link.EnsureAddress(l, cfg.PodCIDR.Masked().Addr()); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("overlay %s up: %w", overlayName, err)
	}
	return &overlay{l}, nil
}

func addOverlay(cfg RunConfig) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = overlayName
	attrs.HardwareAddr = overlayMAC(cfg.NodeIP)
	if mtu := underlayMTU(cfg.NodeIP); mtu > overlayCost {
		attrs.MTU = mtu - overlayCost
	}
	err := netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: overlayVNI, Port: overlayPort, SrcAddr: cfg.NodeIP.AsSlice(), Learning: false,
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return netlink.LinkByName(overlayName)
}

// reach adds the neighbour entries for the other end, and completes the route to it.
func (o *overlay) reach(w wantedRoute, r *netlink.Route) error {
	index, mac, end := o.link.Attrs().Index, overlayMAC(w.via), w.dst.Addr()
	for _, n := range []netlink.Neigh{
		{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: w.via.AsSlice(), HardwareAddr: mac},
		{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: end.AsSlice(), HardwareAddr: mac},
	} {
		if err := netlink.NeighSet(&n); err != nil {
			return fmt.Errorf("overlay neighbour %s: %w", w.via, err)
		}
	}
	r.LinkIndex = index
	r.Gw = end.AsSlice()
	r.Flags = int(netlink.FLAG_ONLINK)
	return nil
}

// overlayMAC returns a locally administered hardware address that contains the node's IP.
func overlayMAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x4b, b[0], b[1], b[2], b[3]}
}

// underlayMTU returns the MTU of the interface with the given address, or 0 if there is
// none.
func underlayMTU(ip netip.Addr) int {
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return 0
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok && addr == ip {
			if l, err := netlink.LinkByIndex(a.LinkIndex); err == nil {
				return l.Attrs().MTU
			}
		}
	}
	return 0
}
