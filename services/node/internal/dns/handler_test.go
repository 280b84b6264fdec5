package dns

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// spell formats an answer as one line: code, flags, and records in textual order.
func spell(m *mdns.Msg) string {
	parts := []string{mdns.RcodeToString[m.Rcode]}
	if m.Authoritative {
		parts[0] += " aa"
	}
	section := func(prefix string, rrs []mdns.RR) {
		var out []string
		for _, r := range rrs {
			if r.Header().Rrtype == mdns.TypeOPT {
				continue
			}
			out = append(out, prefix+strings.ReplaceAll(r.String(), "\t", " "))
		}
		slices.Sort(out)
		parts = append(parts, out...)
	}
	section("", m.Answer)
	section("ns:", m.Ns)
	section("+", m.Extra)
	return strings.Join(parts, " | ")
}

const soa = " | ns:cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"

func TestAnswers(t *testing.T) {
	t.Parallel()
	const (
		no     = "NXDOMAIN aa" + soa
		nodata = "NOERROR aa" + soa
	)
	for _, row := range []struct{ name, qtype, want string }{
		{"web.apps.svc.cluster.local.", "A", "NOERROR aa | web.apps.svc.cluster.local. 30 IN A 10.96.0.100"},
		{"web.apps.svc.cluster.local.", "AAAA", nodata},
		{"web.apps.svc.cluster.local.", "TXT", nodata},
		{"WeB.apps.svc.Cluster.local.", "A", "NOERROR aa | WeB.apps.svc.Cluster.local. 30 IN A 10.96.0.100"},
		{"kubernetes.default.svc.cluster.local.", "A", "NOERROR aa | kubernetes.default.svc.cluster.local. 30 IN A 10.96.0.1"},
		{"absent.apps.svc.cluster.local.", "A", no},
		{"web.nowhere.svc.cluster.local.", "A", no},
		{"x.web.apps.svc.cluster.local.", "A", no},
		// Names that a search path makes of 'web.apps' and of an outside name.
		{"web.apps.apps.svc.cluster.local.", "A", no},
		{"web.apps.cluster.local.", "A", no},
		{"example.org.apps.svc.cluster.local.", "A", no},
		{"example.org.svc.cluster.local.", "A", no},
		{"example.org.cluster.local.", "A", no},
		// Names between a Service and the domain exist and have no data.
		{"cluster.local.", "A", nodata},
		{"svc.cluster.local.", "A", nodata},
		{"apps.svc.cluster.local.", "A", nodata},
		{"nowhere.svc.cluster.local.", "A", no},
		{"_tcp.web.apps.svc.cluster.local.", "SRV", nodata},
		{"_udp.web.apps.svc.cluster.local.", "SRV", no},
		// SRV.
		{"_http._tcp.web.apps.svc.cluster.local.", "SRV", "NOERROR aa | _http._tcp.web.apps.svc.cluster.local. 30 IN SRV 0 100 80 web.apps.svc.cluster.local. | +web.apps.svc.cluster.local. 30 IN A 10.96.0.100"},
		{"_http._tcp.web.apps.svc.cluster.local.", "A", nodata},
		{"_http._udp.web.apps.svc.cluster.local.", "SRV", no},
		{"_nothing._tcp.web.apps.svc.cluster.local.", "SRV", no},
		{"web.apps.svc.cluster.local.", "SRV", "NOERROR aa | web.apps.svc.cluster.local. 30 IN SRV 0 100 80 web.apps.svc.cluster.local. | web.apps.svc.cluster.local. 30 IN SRV 0 100 9090 web.apps.svc.cluster.local. | +web.apps.svc.cluster.local. 30 IN A 10.96.0.100"},
		// Headless Services: ready endpoints, by hostname or address.
		{"db.apps.svc.cluster.local.", "A", "NOERROR aa | db.apps.svc.cluster.local. 5 IN A 10.244.1.5 | db.apps.svc.cluster.local. 5 IN A 10.244.2.6"},
		{"db-0.db.apps.svc.cluster.local.", "A", "NOERROR aa | db-0.db.apps.svc.cluster.local. 5 IN A 10.244.1.5"},
		{"db-0.db.apps.svc.cluster.local.", "AAAA", nodata},
		{"10-244-2-6.db.apps.svc.cluster.local.", "A", "NOERROR aa | 10-244-2-6.db.apps.svc.cluster.local. 5 IN A 10.244.2.6"},
		{"db-2.db.apps.svc.cluster.local.", "A", no},
		{"_pg._tcp.db.apps.svc.cluster.local.", "SRV", "NOERROR aa | _pg._tcp.db.apps.svc.cluster.local. 5 IN SRV 0 100 5432 10-244-2-6.db.apps.svc.cluster.local. | _pg._tcp.db.apps.svc.cluster.local. 5 IN SRV 0 100 5432 db-0.db.apps.svc.cluster.local. | +10-244-2-6.db.apps.svc.cluster.local. 5 IN A 10.244.2.6 | +db-0.db.apps.svc.cluster.local. 5 IN A 10.244.1.5"},
		{"empty.apps.svc.cluster.local.", "A", nodata},
		// ExternalName.
		{"outside.apps.svc.cluster.local.", "A", "NOERROR aa | example.org. 60 IN A 192.0.2.8 | outside.apps.svc.cluster.local. 30 IN CNAME example.org."},
		{"outside.apps.svc.cluster.local.", "CNAME", "NOERROR aa | outside.apps.svc.cluster.local. 30 IN CNAME example.org."},
		{"inside.apps.svc.cluster.local.", "A", "NOERROR aa | inside.apps.svc.cluster.local. 30 IN CNAME web.apps.svc.cluster.local. | web.apps.svc.cluster.local. 30 IN A 10.96.0.100"},
		{"broken.apps.svc.cluster.local.", "A", "NXDOMAIN aa | broken.apps.svc.cluster.local. 30 IN CNAME absent.apps.svc.cluster.local." + soa},
		// Pods by address.
		{"10-244-1-5.apps.pod.cluster.local.", "A", "NOERROR aa | 10-244-1-5.apps.pod.cluster.local. 5 IN A 10.244.1.5"},
		{"10-244-1-5.apps.pod.cluster.local.", "AAAA", nodata},
		{"10-244-1.apps.pod.cluster.local.", "A", no},
		{"pod.cluster.local.", "A", nodata},
		// Reverse.
		{"100.0.96.10.in-addr.arpa.", "PTR", "NOERROR aa | 100.0.96.10.in-addr.arpa. 30 IN PTR web.apps.svc.cluster.local."},
		{"5.1.244.10.in-addr.arpa.", "PTR", "NOERROR aa | 5.1.244.10.in-addr.arpa. 5 IN PTR db-0.db.apps.svc.cluster.local."},
		{"9.1.244.10.in-addr.arpa.", "PTR", no},
		{"7.7.96.10.in-addr.arpa.", "PTR", no},
		{"100.0.96.10.in-addr.arpa.", "A", nodata},
		{"8.2.0.192.in-addr.arpa.", "PTR", "NXDOMAIN"},
		// The domain itself.
		{"cluster.local.", "SOA", "NOERROR aa | cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"},
		{"cluster.local.", "NS", "NOERROR aa | cluster.local. 30 IN NS ns.dns.cluster.local. | +ns.dns.cluster.local. 30 IN A 10.96.0.10"},
		{"ns.dns.cluster.local.", "A", "NOERROR aa | ns.dns.cluster.local. 30 IN A 10.96.0.10"},
		{"dns-version.cluster.local.", "TXT", `NOERROR aa | dns-version.cluster.local. 30 IN TXT "1.1.0"`},
		// Outside the cluster.
		{"example.org.", "A", "NOERROR | example.org. 60 IN A 192.0.2.8"},
		{"ExAmPlE.org.", "A", "NOERROR | ExAmPlE.org. 60 IN A 192.0.2.8"},
		{"nothing.test.", "A", "NXDOMAIN"},
	} {
		t.Run(row.name+row.qtype, func(t *testing.T) {
			t.Parallel()
			h, _ := testHandler(t)
			req := new(mdns.Msg)
			req.SetQuestion(row.name, mdns.StringToType[row.qtype])
			m, _ := h.reply(context.Background(), req)
			if got := spell(m); got != row.want {
				t.Errorf("%s %s:\n got %s\nwant %s", row.name, row.qtype, got, row.want)
			}
			if m.Id != req.Id || !m.Response || !m.RecursionAvailable || m.Question[0].Name != row.name {
				t.Errorf("header: %+v", m.MsgHdr)
			}
			if _, err := m.Pack(); err != nil {
				t.Errorf("pack: %v", err)
			}
		})
	}
}

func TestExternalNameLoopEnds(t *testing.T) {
	t.Parallel()
	h, o := testHandler(t)
	req := new(mdns.Msg)
	req.SetQuestion("loop.apps.svc.cluster.local.", mdns.TypeA)
	m, _ := h.reply(context.Background(), req)
	if len(m.Answer) != maxChase+1 || len(o.asked) != 0 {
		t.Errorf("%d records, %d questions upstream", len(m.Answer), len(o.asked))
	}
}

func TestTheClustersNamesNeverLeaveIt(t *testing.T) {
	t.Parallel()
	h, o := testHandler(t)
	for _, name := range []string{"x.cluster.local.", "db.apps.svc.cluster.local.", "7.7.96.10.in-addr.arpa.", "1.1.244.10.in-addr.arpa.", "a.b.c.d.svc.cluster.local."} {
		for _, qtype := range []uint16{mdns.TypeA, mdns.TypePTR, mdns.TypeMX, mdns.TypeANY} {
			req := new(mdns.Msg)
			req.SetQuestion(name, qtype)
			h.reply(context.Background(), req)
		}
	}
	if len(o.asked) != 0 {
		t.Errorf("asked upstream: %v", o.asked)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	h, _ := testHandler(t)
	good := func() *mdns.Msg { return new(mdns.Msg).SetQuestion("web.apps.svc.cluster.local.", mdns.TypeA) }
	for name, row := range map[string]struct {
		edit func(*mdns.Msg)
		want int
	}{
		"no question":    {func(m *mdns.Msg) { m.Question = nil }, mdns.RcodeFormatError},
		"two questions":  {func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }, mdns.RcodeFormatError},
		"update":         {func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }, mdns.RcodeNotImplemented},
		"chaos":          {func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }, mdns.RcodeRefused},
		"transfer":       {func(m *mdns.Msg) { m.Question[0].Qtype = mdns.TypeAXFR }, mdns.RcodeRefused},
		"EDNS version 1": {func(m *mdns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, mdns.RcodeBadVers},
	} {
		req := good()
		row.edit(req)
		m, _ := h.reply(context.Background(), req)
		if m.Rcode != row.want || len(m.Answer) != 0 {
			t.Errorf("%s: %s, want %s", name, spell(m), mdns.RcodeToString[row.want])
		}
	}
	req := good()
	req.Response = true
	if m, _ := h.reply(context.Background(), req); m != nil {
		t.Error("an answer was answered")
	}
}

func TestBeforeSyncAndWithoutUpstream(t *testing.T) {
	t.Parallel()
	h, o := testHandler(t)
	synced := make(chan struct{})
	h.synced = synced
	req := new(mdns.Msg).SetQuestion("web.apps.svc.cluster.local.", mdns.TypeA)
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if m, _ := h.reply(short, req); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("before the caches are complete: %s", spell(m))
	}
	waited := make(chan *mdns.Msg, 1)
	go func() {
		m, _ := h.reply(context.Background(), req)
		waited <- m
	}()
	for tick := time.NewTicker(time.Millisecond); h.waiting.taken() == 0; <-tick.C {
	}
	if m, _ := h.reply(context.Background(), req); m.Rcode != mdns.RcodeServerFailure {
		t.Errorf("one question too many: %s", spell(m))
	}
	close(synced)
	if m := <-waited; m.Rcode != mdns.RcodeSuccess || len(m.Answer) != 1 {
		t.Errorf("a question that waited for the caches: %s", spell(m))
	}
	o.err = errors.New("unreachable")
	req = new(mdns.Msg).SetQuestion("example.org.", mdns.TypeA)
	req.SetEdns0(1232, false)
	m, _ := h.reply(context.Background(), req)
	if m.Rcode != mdns.RcodeServerFailure || !strings.Contains(m.String(), "unreachable") {
		t.Errorf("without upstream: %s", m)
	}
}

func TestLargeAnswersAreTruncatedOverUDP(t *testing.T) {
	t.Parallel()
	src := cluster()
	slice := src.slices[0]
	for i := range 200 {
		slice.Endpoints = append(slice.Endpoints, endpoint(fmt.Sprintf("10.244.9.%d", i), "", true))
	}
	h := &handler{zone: newZone(testConfig(src)), upstream: &outside{}, synced: src.synced}
	for size, edns := range map[int]uint16{512: 0, 800: 800, 1232: 65535} {
		req := new(mdns.Msg).SetQuestion("db.apps.svc.cluster.local.", mdns.TypeA)
		if edns > 0 {
			req.SetEdns0(edns, false)
		}
		m, _ := h.reply(context.Background(), req)
		m.Truncate(udpSize(req))
		b, err := m.Pack()
		if err != nil || len(b) > size || !m.Truncated || len(m.Answer) == 0 {
			t.Errorf("limit %d: %d bytes, %d records, truncated %v, %v", size, len(b), len(m.Answer), m.Truncated, err)
		}
	}
}

// FuzzReply sends arbitrary bytes through everything that parses them.
func FuzzReply(f *testing.F) {
	for _, name := range []string{"web.apps.svc.cluster.local.", "_http._tcp.web.apps.svc.cluster.local.", "1.0.96.10.in-addr.arpa.", "example.org.", ".", "10-244-1-5.apps.pod.cluster.local.", `a\.b.svc.cluster.local.`} {
		for _, qtype := range []uint16{mdns.TypeA, mdns.TypeSRV, mdns.TypePTR, mdns.TypeANY} {
			m := new(mdns.Msg).SetQuestion(name, qtype)
			m.SetEdns0(1232, true)
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	h, _ := testHandler(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(mdns.Msg)
		if req.Unpack(b) != nil {
			return
		}
		m, _ := h.reply(context.Background(), req)
		if m == nil {
			return
		}
		m.Truncate(udpSize(req))
		if m.Id != req.Id || !m.Response {
			t.Errorf("not an answer to the question: %v", m.MsgHdr)
		}
		out, err := m.Pack()
		if err != nil {
			t.Fatalf("%v does not pack: %v", m, err)
		}
		if len(out) > max(udpSize(req), len(b)+64) {
			t.Errorf("%d bytes for a limit of %d", len(out), udpSize(req))
		}
	})
}

func BenchmarkReply(b *testing.B) {
	h, _ := testHandler(b)
	for _, name := range []string{"web.apps.svc.cluster.local.", "example.org.apps.svc.cluster.local."} {
		b.Run(name, func(b *testing.B) {
			req := new(mdns.Msg).SetQuestion(name, mdns.TypeA)
			for b.Loop() {
				m, _ := h.reply(context.Background(), req)
				if _, err := m.Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
