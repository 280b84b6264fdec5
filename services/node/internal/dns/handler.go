package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// maxUDP is the largest datagram that is sent, in bytes: one that needs no
	// fragmentation on any usual path (DNS flag day 2020).
	maxUDP = 1232
	// maxChase bounds the chain of CNAMEs that is followed inside the cluster.
	maxChase = 8
	// patience bounds the time for a question that goes upstream. Resolvers give up after
	// five seconds.
	patience = 4500 * time.Millisecond
	// startSlots bounds the questions that wait for the caches to be complete.
	startSlots = 256
	// questionSlots bounds the questions that are being answered.
	questionSlots = 2048
)

// handler answers questions.
type handler struct {
	zone     *zone
	upstream asker
	metrics  *Metrics
	log      *slog.Logger
	synced   <-chan struct{}
	// waiting has a slot for each question that waits for synced, and questions has one for
	// each question that is being answered.
	waiting, questions *share
	namespace          func(netip.Addr) string
	// ctx ends when the service stops.
	ctx context.Context
}

// asker sends questions to servers outside the cluster.
type asker interface {
	ask(ctx context.Context, q question) (*mdns.Msg, error)
	// stop cancels the questions in progress. close waits for them; nothing may be asked
	// after it.
	stop()
	close()
}

func newHandler(ctx context.Context, cfg Config) *handler {
	path := cfg.ResolvConf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	up := newUpstream(path, cfg.ListenIP, cfg.Metrics)
	if cfg.upstreamPort != "" {
		up.port = cfg.upstreamPort
	}
	return &handler{
		zone: newZone(cfg), metrics: cfg.Metrics, log: cfg.Log, synced: cfg.Source.Synced(),
		upstream: up, waiting: newShare(startSlots), questions: newShare(questionSlots), namespace: cfg.Namespace, ctx: ctx,
	}
}

// ServeDNS is called by the servers, in a goroutine per question.
func (h *handler) ServeDNS(w mdns.ResponseWriter, req *mdns.Msg) {
	start := time.Now()
	owner := clientOf(w.RemoteAddr(), h.namespace)
	if !h.questions.take(owner) {
		h.metrics.refused()
		h.fail(w, req)
		return
	}
	defer h.questions.give(owner)
	ctx, cancel := context.WithTimeout(withClient(h.ctx, owner), patience)
	defer cancel()
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	reply, from := h.reply(ctx, req)
	if reply == nil {
		return
	}
	size := mdns.MaxMsgSize
	if !overTCP {
		size = udpSize(req)
	}
	reply.Truncate(size)
	h.metrics.answered(from, reply.Rcode, time.Since(start))
	if err := w.WriteMsg(reply); err != nil {
		h.log.DebugContext(h.ctx, "answer was not sent", "error", err)
	}
}

// fail answers SERVFAIL to a client that has too many questions in progress.
func (h *handler) fail(w mdns.ResponseWriter, req *mdns.Msg) {
	if req.Response {
		return
	}
	if err := w.WriteMsg(new(mdns.Msg).SetRcode(req, mdns.RcodeServerFailure)); err != nil {
		h.log.DebugContext(h.ctx, "answer was not sent", "error", err)
	}
}

// Sources of an answer, as labels of the metrics.
const (
	fromCluster  = "cluster"
	fromUpstream = "upstream"
	fromNobody   = "refused"
)

// reply returns the answer to a request, or nil if req is not a request.
func (h *handler) reply(ctx context.Context, req *mdns.Msg) (*mdns.Msg, string) {
	if req.Response {
		return nil, fromNobody
	}
	m := new(mdns.Msg)
	m.SetReply(req)
	m.Compress = true
	m.RecursionAvailable = true
	opt := req.IsEdns0()
	if opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
	}
	switch {
	case opt != nil && opt.Version() != 0:
		m.Rcode = mdns.RcodeBadVers
		return m, fromNobody
	case req.Opcode != mdns.OpcodeQuery:
		m.Rcode = mdns.RcodeNotImplemented
		return m, fromNobody
	case len(req.Question) != 1:
		m.Rcode = mdns.RcodeFormatError
		return m, fromNobody
	}
	q := req.Question[0]
	switch {
	case q.Qclass != mdns.ClassINET && q.Qclass != mdns.ClassANY:
		m.Rcode = mdns.RcodeRefused
		return m, fromNobody
	case q.Qtype == mdns.TypeAXFR || q.Qtype == mdns.TypeIXFR:
		m.Rcode = mdns.RcodeRefused
		return m, fromNobody
	}
	return m, h.fill(ctx, m, q, opt != nil && opt.Do(), req.CheckingDisabled)
}

// fill puts the answer to q into m and returns its source.
func (h *handler) fill(ctx context.Context, m *mdns.Msg, q mdns.Question, do, cd bool) string {
	name := canonical(q.Name)
	if h.zone.owns(name) {
		h.cluster(ctx, m, q, h.zone.lookup, do, cd)
		return fromCluster
	}
	if addr, ok := reverseAddr(name); ok {
		out, found := h.zone.pointer(name, addr)
		if found || h.zone.ownsReverse(addr) {
			h.cluster(ctx, m, q, func(_ string, qtype uint16) result {
				switch {
				case !found:
					return nxDomain
				case qtype == mdns.TypePTR:
					return out
				}
				return noData
			}, do, cd)
			return fromCluster
		}
	}
	h.forward(ctx, m, question{name, q.Qtype, do, cd}, true)
	return fromUpstream
}

// cluster answers from the zone.
func (h *handler) cluster(ctx context.Context, m *mdns.Msg, q mdns.Question, lookup func(string, uint16) result, do, cd bool) {
	if !h.complete(ctx) {
		m.Rcode = mdns.RcodeServerFailure
		return
	}
	m.Authoritative = true
	name := canonical(q.Name)
	out := lookup(name, q.Qtype)
	m.Rcode, m.Answer, m.Extra = out.rcode, out.answer, append(out.extra, m.Extra...)
	if name != q.Name {
		// Spell owner names as in the question: a resolver may mix cases to recognize
		// forged answers.
		for _, rr := range m.Answer {
			if rr.Header().Name == name {
				rr.Header().Name = q.Name
			}
		}
	}
	for range maxChase {
		if out.chase == "" {
			break
		}
		target := out.chase
		if !h.zone.owns(target) {
			h.forward(ctx, m, question{target, q.Qtype, do, cd}, false)
			return
		}
		out = h.zone.lookup(target, q.Qtype)
		m.Answer = append(m.Answer, out.answer...)
		m.Rcode = out.rcode
	}
	if len(m.Answer) == 0 || m.Rcode == mdns.RcodeNameError {
		m.Ns = append(m.Ns, h.zone.soa())
	}
}

// complete waits until the caches hold the cluster's state, so that after a restart a
// client gets its answer a little later rather than an error. It returns false if ctx ends
// first or too many questions wait.
func (h *handler) complete(ctx context.Context) bool {
	select {
	case <-h.synced:
		return true
	default:
	}
	owner := clientFrom(ctx)
	if !h.waiting.take(owner) {
		return false
	}
	defer h.waiting.give(owner)
	select {
	case <-h.synced:
		return true
	case <-ctx.Done():
		return false
	}
}

// forward adds the answer of an upstream server. whole is true if the question itself was
// forwarded, and false for the target of a CNAME.
func (h *handler) forward(ctx context.Context, m *mdns.Msg, q question, whole bool) {
	answer, err := h.upstream.ask(ctx, q)
	if err != nil {
		m.Rcode = mdns.RcodeServerFailure
		h.explain(m, err)
		return
	}
	m.Rcode = answer.Rcode
	m.Answer = append(m.Answer, answer.Answer...)
	if whole {
		m.AuthenticatedData = answer.AuthenticatedData
		m.Ns = answer.Ns
		m.Extra = append(answer.Extra, m.Extra...)
		if len(m.Question) == 1 && m.Question[0].Name != q.name {
			for i, rr := range m.Answer {
				if rr.Header().Name == q.name {
					m.Answer[i] = mdns.Copy(rr)
					m.Answer[i].Header().Name = m.Question[0].Name
				}
			}
		}
	}
}

// explain adds for an EDNS client why there is no answer (RFC 8914).
func (h *handler) explain(m *mdns.Msg, err error) {
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &mdns.EDNS0_EDE{InfoCode: mdns.ExtendedErrorCodeNoReachableAuthority, ExtraText: err.Error()})
	}
}

// reverseAddr parses the IPv4 address of a name under in-addr.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	s, ok := strings.CutSuffix(name, ".in-addr.arpa.")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(s, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
	return addr, err == nil && addr.Is4()
}

func udpSize(req *mdns.Msg) int {
	if opt := req.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), mdns.MinMsgSize), maxUDP)
	}
	return mdns.MinMsgSize
}
