package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// server is an upstream server on loopback, with UDP and TCP on the same port.
type server struct {
	addr  netip.AddrPort
	asked atomic.Int64
	tcp   atomic.Int64
}

func newServer(t *testing.T, ip string, answer func(*mdns.Msg, bool) *mdns.Msg) *server {
	t.Helper()
	udp, tcp, err := listen(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(ip), 0))
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, udp, tcp, answer)
}

func serve(t *testing.T, udp net.PacketConn, tcp net.Listener, answer func(*mdns.Msg, bool) *mdns.Msg) *server {
	t.Helper()
	s := &server{}
	s.addr = udp.LocalAddr().(*net.UDPAddr).AddrPort()
	handler := mdns.HandlerFunc(func(w mdns.ResponseWriter, req *mdns.Msg) {
		s.asked.Add(1)
		_, overTCP := w.RemoteAddr().(*net.TCPAddr)
		if overTCP {
			s.tcp.Add(1)
		}
		if m := answer(req, overTCP); m != nil {
			_ = w.WriteMsg(m)
		}
	})
	var wg sync.WaitGroup
	for _, srv := range []*mdns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
		wg.Go(func() { _ = srv.ActivateAndServe() })
		t.Cleanup(func() { _ = srv.Shutdown() })
	}
	t.Cleanup(func() { udp.Close(); tcp.Close(); wg.Wait() })
	return s
}

func addressed(text string) func(*mdns.Msg, bool) *mdns.Msg {
	return func(req *mdns.Msg, _ bool) *mdns.Msg {
		m := new(mdns.Msg).SetReply(req)
		rr, _ := mdns.NewRR(req.Question[0].Name + " 60 IN A " + text)
		m.Answer = []mdns.RR{rr}
		return m
	}
}

func testUpstream(t *testing.T, port uint16, servers ...string) *upstream {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var text strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&text, "nameserver %s\n", s)
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	u := newUpstream(path, netip.MustParseAddr("10.96.0.10"), nil)
	u.port, u.try = fmt.Sprint(port), time.Minute // long enough to ask only once, however slow the machine is
	t.Cleanup(u.close)
	return u
}

func ask(t *testing.T, u *upstream, name string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m, err := u.ask(ctx, question{name: name, qtype: mdns.TypeA})
	if err != nil {
		return "", err
	}
	return spell(m), nil
}

func TestUpstreamIsAskedOnce(t *testing.T) {
	t.Parallel()
	s := newServer(t, "127.0.0.1", addressed("192.0.2.1"))
	u := testUpstream(t, s.addr.Port(), "127.0.0.1")
	now := time.Now()
	var mu sync.Mutex
	u.now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	for range 3 {
		if got, err := ask(t, u, "a.test."); err != nil || got != "NOERROR | a.test. 60 IN A 192.0.2.1" {
			t.Fatalf("%s, %v", got, err)
		}
	}
	if n := s.asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	mu.Lock()
	now = now.Add(25 * time.Second)
	mu.Unlock()
	if got, _ := ask(t, u, "a.test."); got != "NOERROR | a.test. 35 IN A 192.0.2.1" {
		t.Errorf("25 seconds later: %s", got)
	}
	mu.Lock()
	now = now.Add(36 * time.Second)
	mu.Unlock()
	if _, _ = ask(t, u, "a.test."); s.asked.Load() != 2 {
		t.Error("an answer outlived its TTL")
	}
}

func TestCallersShareAQuestion(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := newServer(t, "127.0.0.1", func(req *mdns.Msg, tcp bool) *mdns.Msg {
		<-release
		return addressed("192.0.2.1")(req, tcp)
	})
	u := testUpstream(t, s.addr.Port(), "127.0.0.1")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := ask(t, u, "a.test."); err != nil {
				t.Error(err)
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); u.slots.taken() < 50 && time.Now().Before(deadline); {
		<-tick.C
	}
	close(release)
	wg.Wait()
	if n := s.asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

func TestTruncatedAnswersAreFetchedOverTCP(t *testing.T) {
	t.Parallel()
	s := newServer(t, "127.0.0.1", func(req *mdns.Msg, tcp bool) *mdns.Msg {
		if tcp {
			return addressed("192.0.2.1")(req, tcp)
		}
		m := new(mdns.Msg).SetReply(req)
		m.Truncated = true
		return m
	})
	u := testUpstream(t, s.addr.Port(), "127.0.0.1")
	if got, err := ask(t, u, "a.test."); err != nil || !strings.Contains(got, "192.0.2.1") || s.tcp.Load() != 1 {
		t.Errorf("%s, %v, %d over TCP", got, err, s.tcp.Load())
	}
}

func TestAnotherServerIsAskedWhenOneFails(t *testing.T) {
	t.Parallel()
	var good, bad *server
	for bad == nil { // the port must be free on both addresses
		udp, tcp, err := listen(t.Context(), netip.MustParseAddrPort("127.0.0.2:0"))
		if err != nil {
			t.Fatal(err)
		}
		badUDP, badTCP, err := listen(t.Context(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
		if errors.Is(err, syscall.EADDRINUSE) {
			udp.Close()
			tcp.Close()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		good = serve(t, udp, tcp, addressed("192.0.2.2"))
		bad = serve(t, badUDP, badTCP, func(req *mdns.Msg, _ bool) *mdns.Msg {
			return new(mdns.Msg).SetRcode(req, mdns.RcodeServerFailure)
		})
	}
	u := testUpstream(t, good.addr.Port(), "127.0.0.1", "127.0.0.2")
	now := time.Now()
	u.now = func() time.Time { return now } // a server that fails is asked last only for a while
	for i := range 5 {
		if got, err := ask(t, u, fmt.Sprintf("%d.test.", i)); err != nil || !strings.Contains(got, "192.0.2.2") {
			t.Fatalf("%s, %v", got, err)
		}
	}
	if n := bad.asked.Load(); n != 1 {
		t.Errorf("the failing server was asked %d times, want once", n)
	}
}

func TestUpstreamFailures(t *testing.T) {
	t.Parallel()
	u := testUpstream(t, 53)
	if _, err := ask(t, u, "a.test."); err == nil || !strings.Contains(err.Error(), "no upstream server") {
		t.Errorf("without servers: %v", err)
	}
	u = testUpstream(t, 53, "10.96.0.10")
	if _, err := ask(t, u, "a.test."); err == nil || !strings.Contains(err.Error(), "no upstream server") {
		t.Errorf("with itself as the server: %v", err)
	}
	liar := newServer(t, "127.0.0.1", func(req *mdns.Msg, tcp bool) *mdns.Msg {
		m := addressed("192.0.2.1")(req, tcp)
		m.Question[0].Name = "other.test."
		return m
	})
	u = testUpstream(t, liar.addr.Port(), "127.0.0.1")
	if got, err := ask(t, u, "a.test."); err == nil {
		t.Errorf("an answer to another question was accepted: %s", got)
	}
}

func TestTooManyQuestionsAreRefused(t *testing.T) {
	t.Parallel()
	u := testUpstream(t, 53, "127.0.0.1")
	u.slots = newShare(1)
	u.slots.take(client{})
	if _, err := ask(t, u, "a.test."); !errors.Is(err, errBusy) {
		t.Errorf("got %v, want %v", err, errBusy)
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	t.Parallel()
	u := testUpstream(t, 53, "192.0.2.1")
	now := time.Now()
	u.now = func() time.Time { return now }
	if got := fmt.Sprint(u.order()); got != "[192.0.2.1:53]" {
		t.Fatal(got)
	}
	if err := os.WriteFile(u.path, []byte("nameserver 192.0.2.2\nnameserver 192.0.2.3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(u.path, now, now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(confCheck)
	if got := fmt.Sprint(u.order()); got != "[192.0.2.2:53 192.0.2.3:53]" {
		t.Error(got)
	}
	// A file that is briefly missing changes nothing.
	if err := os.Remove(u.path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(confCheck)
	if got := fmt.Sprint(u.order()); got != "[192.0.2.2:53 192.0.2.3:53]" {
		t.Error(got)
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c, now := newCache(), time.Now()
	m := new(mdns.Msg).SetQuestion("a.test.", mdns.TypeA)
	m.Answer = []mdns.RR{rr(t, "a.test. 60 IN A 192.0.2.1")}
	const n = 3 * cacheShards * shardSize
	for i := range n {
		c.put(client{}, question{name: fmt.Sprint(i)}, m, now)
	}
	kept := 0
	for i := range n {
		if c.get(question{name: fmt.Sprint(i)}, now) != nil {
			kept++
		}
	}
	if kept > cacheShards*shardSize || kept < cacheShards*shardSize/2 {
		t.Errorf("%d answers kept", kept)
	}
	if c.get(question{name: fmt.Sprint(n - 1)}, now) == nil {
		t.Error("the newest answer is not cached")
	}
}

func TestLifetime(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		rcode      int
		answer, ns string
		want       time.Duration
	}{
		"the least TTL":             {mdns.RcodeSuccess, "a. 60 IN A 192.0.2.1", "b. 20 IN NS c.", 20 * time.Second},
		"at most an hour":           {mdns.RcodeSuccess, "a. 86400 IN A 192.0.2.1", "", time.Hour},
		"not at all":                {mdns.RcodeSuccess, "a. 0 IN A 192.0.2.1", "", 0},
		"negative, as the SOA says": {mdns.RcodeNameError, "", "a. 15 IN SOA b. c. 1 2 3 4 20", 15 * time.Second},
		"negative, capped":          {mdns.RcodeNameError, "", "a. 900 IN SOA b. c. 1 2 3 4 900", cacheNegative},
		"negative, without SOA":     {mdns.RcodeNameError, "", "", 0},
		"no data, as the SOA says":  {mdns.RcodeSuccess, "", "a. 15 IN SOA b. c. 1 2 3 4 7", 7 * time.Second},
		"a failure":                 {mdns.RcodeServerFailure, "", "a. 15 IN SOA b. c. 1 2 3 4 7", 0},
	} {
		m := &mdns.Msg{MsgHdr: mdns.MsgHdr{Rcode: row.rcode}}
		if row.answer != "" {
			m.Answer = []mdns.RR{rr(t, row.answer)}
		}
		if row.ns != "" {
			m.Ns = []mdns.RR{rr(t, row.ns)}
		}
		if got := lifetime(m); got != row.want {
			t.Errorf("%s: %v, want %v", name, got, row.want)
		}
	}
}
