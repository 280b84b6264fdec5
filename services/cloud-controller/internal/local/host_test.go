package local

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// host is a network namespace with a bridge; it has no name and no way out, and
// ends with the test.
type host struct {
	t     *testing.T
	ns    netns.NsHandle
	nodes int
}

// inside runs f on a thread of its own, which is thrown away; enter moves it.
func inside(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func newNamespace(t *testing.T, f func() error) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	err := inside(func() (err error) { ns, err = netns.New(); return err }, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		t.Fatalf("new network namespace (are you root?): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t}
	h.ns = newNamespace(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "br0"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return up("br0", "10.89.0.1/24")
	})
	return h
}

func up(name, address string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrReplace(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func (h *host) do(f func() error) error {
	return inside(func() error { return netns.Set(h.ns) }, f)
}

func (h *host) must(f func() error) {
	h.t.Helper()
	if err := h.do(f); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) run(program string, args ...string) string {
	h.t.Helper()
	var out []byte
	err := h.do(func() (err error) {
		out, err = exec.Command(program, args...).CombinedOutput()
		return err
	})
	if err != nil {
		h.t.Fatalf("%s %v: %v: %s", program, args, err, out)
	}
	return string(out)
}

// node adds a machine that answers on a load balancer's address with its own.
func (h *host) node(address, balancer string) {
	h.t.Helper()
	h.nodes++
	var l net.Listener
	ns := newNamespace(h.t, func() error { return up("lo", balancer+"/32") })
	name := "n" + strings.ReplaceAll(address, ".", "")
	h.must(func() error {
		br, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = name, br.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}); err != nil {
			return err
		}
		return up(name, "")
	})
	err := inside(func() error { return netns.Set(ns) }, func() (err error) {
		if err := up("eth0", address+"/24"); err != nil {
			return err
		}
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp4", balancer+":80")
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	var wg sync.WaitGroup
	h.t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, address)
			c.Close()
		}
	})
}

// call connects from the host and returns the response.
func (h *host) call(address string) (string, error) {
	// A link that has just come up may lose the first packets: they come again after
	// one second, and after three.
	const patience = 20 * time.Second
	var answer []byte
	err := h.do(func() error {
		d := net.Dialer{Timeout: patience, FallbackDelay: -1}
		c, err := d.DialContext(context.Background(), "tcp4", netip.AddrPortFrom(netip.MustParseAddr(address), 80).String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		answer, err = io.ReadAll(c)
		return err
	})
	return string(answer), err
}

func unreachable(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}
