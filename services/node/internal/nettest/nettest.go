// Package nettest creates network namespaces for tests: machines on a bridge, pods behind
// them, and clients and servers inside. A namespace has no name and disappears with the
// test, however the test ends. It has no default route.
//
// It must never touch the namespace in which the test was started.
package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"keelson.dev/services/node/internal/link"
)

// NS is a network namespace.
type NS struct {
	t      testing.TB
	Name   string
	handle netns.NsHandle
}

// New creates a namespace with its loopback interface up.
func New(t testing.TB, name string) *NS {
	t.Helper()
	ns := &NS{t: t, Name: name}
	onOwnThread(t, func() error {
		h, err := netns.New()
		if err != nil {
			return fmt.Errorf("new network namespace (are you root?): %w", err)
		}
		ns.handle = h
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	t.Cleanup(func() { ns.handle.Close() })
	return ns
}

// onOwnThread runs f on a thread that is discarded afterwards, whatever namespace it ends
// in.
func onOwnThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Do runs f inside the namespace. Only f's own goroutine is inside; sockets that it creates
// stay there.
func (n *NS) Do(f func() error) error {
	done := make(chan error, 1)
	n.Go(func() { done <- f() })
	return <-done
}

// Go runs f inside the namespace, in a goroutine of its own.
func (n *NS) Go(f func()) {
	entered := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(n.handle)
		entered <- err
		if err == nil {
			f()
		}
	}()
	if err := <-entered; err != nil {
		n.t.Errorf("enter namespace %s: %v", n.Name, err)
	}
}

// Must is Do for functions that must not fail.
func (n *NS) Must(f func() error) {
	n.t.Helper()
	if err := n.Do(f); err != nil {
		n.t.Fatalf("in namespace %s: %v", n.Name, err)
	}
}

// Run runs a program inside the namespace and returns its output.
func (n *NS) Run(program string, args ...string) string {
	n.t.Helper()
	out, err := n.Try(program, args...)
	if err != nil {
		n.t.Fatalf("in namespace %s: %s %s: %v\n%s", n.Name, program, strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run, but returns the error.
func (n *NS) Try(program string, args ...string) (string, error) {
	var out []byte
	err := n.Do(func() (err error) {
		out, err = exec.Command(program, args...).CombinedOutput()
		return err
	})
	return string(out), err
}

// Path returns a file that refers to the namespace, for programs that need one (CNI
// plugins).
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.handle)) }

// linkNumber makes interface names unique.
var linkNumber atomic.Uint32

// connect creates a veth pair with one end in each namespace, and returns the name of the
// end in a.
func connect(a *NS, b *NS, nameInB string) string {
	a.t.Helper()
	name := fmt.Sprintf("v%d", linkNumber.Add(1))
	a.Must(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameInB, PeerNamespace: netlink.NsFd(b.handle)})
	})
	return name
}

func setAddress(name string, p netip.Prefix) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if p.IsValid() {
		if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: link.Network(p)}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// Net is a bridged network of machines and its host.
type Net struct {
	t    testing.TB
	Host *NS
	cidr netip.Prefix
}

// NewNet creates the host and its bridge. The host has the first address of the range.
func NewNet(t testing.TB, cidr netip.Prefix) *Net {
	t.Helper()
	n := &Net{t: t, Host: New(t, "host"), cidr: cidr}
	n.Host.Must(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return setAddress("br0", netip.PrefixFrom(cidr.Addr().Next(), cidr.Bits()))
	})
	return n
}

// Machine creates a machine on the network.
func (n *Net) Machine(name string, addr netip.Addr) *NS {
	n.t.Helper()
	m := New(n.t, name)
	m.Must(func() error {
		for file, value := range map[string]string{"ip_forward": "1", "conf/all/send_redirects": "0", "conf/default/send_redirects": "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+file, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	port := connect(n.Host, m, "eth0")
	n.Host.Must(func() error {
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(l, br); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	m.Must(func() error {
		return setAddress("eth0", netip.PrefixFrom(addr, n.cidr.Bits()))
	})
	return m
}

// Pod creates a namespace behind a machine, connected as the ptp plugin does it.
func (n *NS) Pod(name string, addr, gateway netip.Addr) *NS {
	n.t.Helper()
	pod := New(n.t, name)
	port := connect(n, pod, "eth0")
	n.Must(func() error {
		if err := setAddress(port, netip.PrefixFrom(gateway, 32)); err != nil {
			return err
		}
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: link.Network(netip.PrefixFrom(addr, 32))})
	})
	pod.Must(func() error {
		if err := setAddress("eth0", netip.PrefixFrom(addr, 32)); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice(),
			Flags: int(netlink.FLAG_ONLINK), Dst: link.Network(netip.MustParsePrefix("0.0.0.0/0"))})
	})
	return pod
}

// Route adds a route inside the namespace.
func (n *NS) Route(dst netip.Prefix, via netip.Addr) {
	n.t.Helper()
	n.Must(func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: link.Network(dst), Gw: via.AsSlice()})
	})
}

// Refused reports whether err is an active refusal rather than a timeout. A machine that
// rejects its own datagram reports EPERM.
func Refused(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM)
}

// Join connects two networks through their hosts, which forward between them, and adds a
// route to the other network on each of the given machines.
func (n *Net) Join(other *Net, machines, others []*NS) {
	n.t.Helper()
	for i, side := range []struct {
		net, far *Net
		ms       []*NS
	}{{n, other, machines}, {other, n, others}} {
		if i == 0 {
			name := connect(n.Host, other.Host, "join0")
			n.Host.Must(func() error { return setAddress(name, netip.MustParsePrefix("192.168.255.1/30")) })
			other.Host.Must(func() error { return setAddress("join0", netip.MustParsePrefix("192.168.255.2/30")) })
		}
		side.net.Host.Must(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
		side.net.Host.Route(side.far.cidr, netip.AddrFrom4([4]byte{192, 168, 255, byte(2 - i)}))
		for _, m := range side.ms {
			m.Route(side.far.cidr, side.net.cidr.Addr().Next())
		}
	}
}
