package dns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func TestShare(t *testing.T) {
	s := newShare(12)
	a, b, c := client{namespace: "a"}, client{namespace: "b"}, client{addr: netip.MustParseAddr("192.0.2.1")}
	fill := func(owner client) (n int) {
		for s.take(owner) {
			n++
		}
		return n
	}
	if n := fill(a); n != 6 {
		t.Errorf("the first client took %d slots", n)
	}
	if n := fill(b); n != 3 {
		t.Errorf("the second client took %d slots", n)
	}
	if !s.take(c) {
		t.Error("the third client got no slot")
	}
	for range 6 {
		s.give(a)
	}
	if n := fill(b); n != 3 || s.taken() != 7 {
		t.Errorf("then the second client took %d slots, %d are taken", n, s.taken())
	}
	var none *share
	if none.take(a) {
		t.Error("a nil share gave a slot")
	}
}

// TestCacheIsShared checks that a client with many answers evicts other clients' answers
// only as long as it has few of its own.
func TestCacheIsShared(t *testing.T) {
	t.Parallel()
	c, now := newCache(), time.Now()
	m := new(mdns.Msg).SetQuestion("a.test.", mdns.TypeA)
	m.Answer = []mdns.RR{rr(t, "a.test. 60 IN A 192.0.2.1")}
	quiet, loud := client{namespace: "quiet"}, client{namespace: "loud"}
	const few = cacheShards * shardSize / 4
	for i := range few {
		c.put(quiet, question{name: fmt.Sprint("quiet", i)}, m, now)
	}
	for i := range 5 * cacheShards * shardSize {
		c.put(loud, question{name: fmt.Sprint("loud", i)}, m, now)
	}
	for i := range few {
		if c.get(question{name: fmt.Sprint("quiet", i)}, now) == nil {
			t.Fatalf("answer %d of the quiet client is gone", i)
		}
	}
	for i := range c.shards {
		s := &c.shards[i]
		if s.order.Len() != len(s.byKey) || s.owned[quiet]+s.owned[loud] != s.order.Len() || s.order.Len() > shardSize {
			t.Errorf("shard %d: %d entries, %d keys, owned %v", i, s.order.Len(), len(s.byKey), s.owned)
		}
	}
}

// TestFlood checks that while one client floods the server with connections and with
// questions that get no answer, another client's questions are answered.
func TestFlood(t *testing.T) {
	t.Parallel()
	upstream := newServer(t, "127.0.0.5", func(req *mdns.Msg, tcp bool) *mdns.Msg {
		if req.Question[0].Name == "quiet.test." {
			return addressed("192.0.2.1")(req, tcp)
		}
		return nil
	})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.5\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	addr, _ := start(t, func(cfg *Config) {
		cfg.ResolvConf, cfg.upstreamPort = conf, fmt.Sprint(upstream.addr.Port())
		cfg.Namespace = func(a netip.Addr) string { // two addresses in one namespace
			if a == netip.MustParseAddr("127.0.0.2") || a == netip.MustParseAddr("127.0.0.4") {
				return "loud"
			}
			return ""
		}
	})
	dial := func(network, from string) net.Conn {
		d := net.Dialer{Timeout: 30 * time.Second}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial(network, addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	loud := []*mdns.Conn{{Conn: dial("udp", "127.0.0.2")}, {Conn: dial("udp", "127.0.0.4")}}
	go func() {
		defer close(stopped)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for j := range 20 {
				_ = loud[i%2].WriteMsg(new(mdns.Msg).SetQuestion(fmt.Sprintf("loud-%d-%d.test.", i, j), mdns.TypeA))
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for deadline, tick := time.Now().Add(time.Minute), time.NewTicker(time.Millisecond); upstream.asked.Load() < upstreamSlots/2-10; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("only %d questions of the flood came through", upstream.asked.Load())
		}
	}
	for range tcpConnections {
		dial("tcp", "127.0.0.2")
	}
	for _, network := range []string{"udp", "tcp"} {
		c := &mdns.Client{Net: network, Timeout: time.Second}
		if network == "tcp" { // over TCP nothing is lost, so nothing is sent again
			c.Timeout = time.Minute
		}
		for deadline := time.Now().Add(time.Minute); ; {
			m, _, err := c.ExchangeWithConn(new(mdns.Msg).SetQuestion("quiet.test.", mdns.TypeA), &mdns.Conn{Conn: dial(network, "127.0.0.3")})
			if err != nil && isTimeout(err) && network == "udp" && time.Now().Before(deadline) {
				continue // the datagram was lost
			}
			if err != nil || m.Rcode != mdns.RcodeSuccess || len(m.Answer) != 1 {
				t.Errorf("over %s: %v %v", network, m, err)
			}
			break
		}
	}
}
