package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"keelson.dev/services/node/internal/nettest"
)

// start runs the server on loopback until the test ends.
func start(t *testing.T, edit func(*Config)) (netip.AddrPort, func()) {
	t.Helper()
	cfg := testConfig(cluster())
	cfg.ListenIP, cfg.noLink, cfg.ResolvConf = netip.MustParseAddr("127.0.0.1"), true, "/dev/null"
	addr := make(chan netip.AddrPort, 1)
	cfg.listening = func(a netip.AddrPort) { addr <- a }
	if edit != nil {
		edit(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the server does not stop")
		}
	})
	t.Cleanup(stop)
	select {
	case a := <-addr:
		return a, stop
	case err := <-done:
		done <- nil
		t.Fatal(err)
		return netip.AddrPort{}, nil
	}
}

func TestOverUDPAndTCP(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, nil)
	for _, network := range []string{"udp", "tcp"} {
		c := mdns.Client{Net: network, Timeout: 30 * time.Second}
		m, _, err := c.Exchange(new(mdns.Msg).SetQuestion("web.apps.svc.cluster.local.", mdns.TypeA), addr.String())
		if err != nil || !strings.Contains(spell(m), "10.96.0.100") {
			t.Errorf("%s: %v %v", network, m, err)
		}
	}
}

func TestGarbageIsSurvived(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, nil)
	udp, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, b := range [][]byte{{0}, make([]byte, 11), []byte(strings.Repeat("\xff", 1400)), []byte(strings.Repeat("\xc0\x0c", 600))} {
		if _, err := udp.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	tcp, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	_, _ = tcp.Write([]byte{0xff, 0xff, 0, 0, 0}) // announces more bytes than are sent
	c := mdns.Client{Timeout: 30 * time.Second}
	if _, _, err := c.Exchange(new(mdns.Msg).SetQuestion("web.apps.svc.cluster.local.", mdns.TypeA), addr.String()); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	addr, _ := start(t, nil)
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range tcpConnections + 20 {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	served := 0
	for _, c := range open { // ask on all of them before waiting for the first answer
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_ = (&mdns.Conn{Conn: c}).WriteMsg(new(mdns.Msg).SetQuestion("web.apps.svc.cluster.local.", mdns.TypeA))
	}
	for _, c := range open {
		if _, err := (&mdns.Conn{Conn: c}).ReadMsg(); err == nil {
			served++
		} else if isTimeout(err) {
			t.Fatal("a connection is neither served nor closed")
		}
	}
	if served == 0 || served > tcpConnections {
		t.Errorf("%d of %d connections were served, want %d at most", served, len(open), tcpConnections)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// TestEndsWhileAQuestionHangs checks that a question that hangs upstream does not delay the
// shutdown.
func TestEndsWhileAQuestionHangs(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 8)
	silent := newServer(t, "127.0.0.1", func(*mdns.Msg, bool) *mdns.Msg { asked <- struct{}{}; return nil })
	u := testUpstream(t, silent.addr.Port(), "127.0.0.1")
	done := make(chan error, 1)
	go func() {
		_, err := u.ask(context.Background(), question{name: "a.test.", qtype: mdns.TypeA})
		done <- err
	}()
	<-asked
	u.stop()
	if err := <-done; !errors.Is(err, context.Canceled) { // cancelled, rather than failed for lack of an answer
		t.Errorf("the question ended with %v", err)
	}
}

// TestOnANode runs the server on a node: the address is assigned, pods get answers there,
// and Cleanup leaves nothing.
func TestOnANode(t *testing.T) {
	t.Parallel()
	net := nettest.NewNet(t, netip.MustParsePrefix("10.89.0.0/24"))
	node := net.Machine("node-1", netip.MustParseAddr("10.89.0.11"))
	pod := node.Pod("pod-a", netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.1.1"))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cfg := testConfig(cluster())
	cfg.ResolvConf = "/dev/null"
	addr := make(chan netip.AddrPort, 1)
	cfg.Port, cfg.listening = 53, func(a netip.AddrPort) { addr <- a }
	done := make(chan error, 1)
	node.Go(func() { done <- Run(ctx, cfg) })
	select {
	case <-addr:
	case err := <-done:
		t.Fatal(err)
	}
	for _, from := range []*nettest.NS{pod, node} {
		for _, network := range []string{"udp", "tcp"} {
			c, err := from.Dial(network, netip.MustParseAddrPort("10.96.0.10:53"))
			if err != nil {
				t.Fatal(err)
			}
			conn := &mdns.Conn{Conn: c}
			_ = conn.SetDeadline(time.Now().Add(nettest.Patience))
			if err := conn.WriteMsg(new(mdns.Msg).SetQuestion("web.apps.svc.cluster.local.", mdns.TypeA)); err != nil {
				t.Fatal(err)
			}
			m, err := conn.ReadMsg()
			if err != nil || !strings.Contains(spell(m), "10.96.0.100") {
				t.Errorf("%s over %s: %v %v", from.Name, network, m, err)
			}
			c.Close()
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	node.Must(Cleanup)
	if out := node.Run("ip", "-br", "link"); strings.Contains(out, "keelson") {
		t.Errorf("interfaces left behind:\n%s", out)
	}
}
