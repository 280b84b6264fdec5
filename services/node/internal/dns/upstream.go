package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// upstreamSlots bounds the questions that wait for upstream servers.
	upstreamSlots = 512
	// tryTimeout bounds one question to one server.
	tryTimeout = 2 * time.Second
	// upstreamTries is the maximum number of tries for one question.
	upstreamTries = 4
	// penalty is how long a server that did not answer is moved to the end of the list.
	penalty = 10 * time.Second
	// confCheck is the minimum interval between checks of resolv.conf.
	confCheck = 5 * time.Second
)

var (
	errBusy       = errors.New("too many questions are waiting for upstream servers")
	errNoUpstream = errors.New("no upstream server is configured")
)

// question is the cache key of upstream answers.
type question struct {
	name   string // canonical
	qtype  uint16
	do, cd bool
}

// upstream asks the servers in resolv.conf and caches their answers. Concurrent callers
// with the same question share one request.
type upstream struct {
	path    string
	self    netip.Addr
	metrics *Metrics
	cache   *cache
	slots   *share
	now     func() time.Time
	port    string        // of the servers; set by tests
	try     time.Duration // timeout of one try; set by tests

	ctx    context.Context // cancels the questions in progress when the service stops
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	flights map[question]*flight
	servers []string
	modTime time.Time
	checked time.Time
	slow    map[string]time.Time // when each server last failed
}

// flight is a question in progress.
type flight struct {
	done chan struct{}
	msg  *mdns.Msg
	err  error
}

func newUpstream(path string, self netip.Addr, metrics *Metrics) *upstream {
	ctx, cancel := context.WithCancel(context.Background())
	return &upstream{
		path: path, self: self, metrics: metrics, cache: newCache(), slots: newShare(upstreamSlots),
		now: time.Now, port: "53", try: tryTimeout, ctx: ctx, cancel: cancel,
		flights: map[question]*flight{}, slow: map[string]time.Time{},
	}
}

func (u *upstream) stop() { u.cancel() }

func (u *upstream) close() {
	u.cancel()
	u.wg.Wait()
}

// ask returns the answer to a question. The answer belongs to the caller.
func (u *upstream) ask(ctx context.Context, q question) (*mdns.Msg, error) {
	if m := u.cache.get(q, u.now()); m != nil {
		u.metrics.hit()
		return m, nil
	}
	owner := clientFrom(ctx)
	if !u.slots.take(owner) {
		u.metrics.refused()
		return nil, errBusy
	}
	defer u.slots.give(owner)
	f := u.join(owner, q)
	select {
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		return f.msg.Copy(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// join returns the flight of a question, and starts it on behalf of the client if there is
// none.
func (u *upstream) join(owner client, q question) *flight {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flights[q]; f != nil {
		return f
	}
	f := &flight{done: make(chan struct{})}
	u.flights[q] = f
	u.wg.Go(func() {
		ctx, cancel := context.WithTimeout(u.ctx, patience)
		defer cancel()
		f.msg, f.err = u.fetch(ctx, q)
		if f.err == nil {
			u.cache.put(owner, q, f.msg, u.now())
		}
		u.mu.Lock()
		delete(u.flights, q)
		u.mu.Unlock()
		close(f.done)
	})
	return f
}

// fetch asks the servers in turn.
func (u *upstream) fetch(ctx context.Context, q question) (*mdns.Msg, error) {
	servers := u.order()
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	var errs []error
	for i := range min(upstreamTries, 2*len(servers)) {
		server := servers[i%len(servers)]
		m, err := u.exchange(ctx, server, q)
		u.judge(server, err)
		if err == nil {
			return m, nil
		}
		u.metrics.upstreamFailed()
		errs = append(errs, fmt.Errorf("%s: %w", server, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// exchange asks one server, over TCP if the answer does not fit into a datagram. A new
// socket for each question provides a random source port.
func (u *upstream) exchange(ctx context.Context, server string, q question) (*mdns.Msg, error) {
	req := new(mdns.Msg)
	req.SetQuestion(q.name, q.qtype)
	req.CheckingDisabled = q.cd
	req.SetEdns0(maxUDP, q.do)
	for _, network := range []string{"udp", "tcp"} {
		resp, err := once(ctx, u.try, network, server, req)
		if err != nil {
			return nil, err
		}
		if len(resp.Question) != 1 || canonical(resp.Question[0].Name) != q.name || resp.Question[0].Qtype != q.qtype {
			return nil, errors.New("the answer is for another question")
		}
		if resp.Truncated && network == "udp" {
			continue
		}
		switch resp.Rcode {
		case mdns.RcodeSuccess, mdns.RcodeNameError:
			return trimmed(resp), nil
		default:
			return nil, fmt.Errorf("answered %s", mdns.RcodeToString[resp.Rcode])
		}
	}
	return nil, errors.New("the answer is truncated")
}

// once sends a question and reads the answer. The library's own exchange observes the
// context's deadline, but not its cancellation.
func once(ctx context.Context, try time.Duration, network, server string, req *mdns.Msg) (*mdns.Msg, error) {
	dialer := net.Dialer{Timeout: try}
	conn, err := dialer.DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := mdns.Client{Net: network, Timeout: try, UDPSize: maxUDP}
	resp, _, err := c.ExchangeWithConnContext(ctx, req, &mdns.Conn{Conn: conn, UDPSize: maxUDP})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return resp, err
}

// trimmed removes the records that belong to the exchange with the upstream server.
func trimmed(m *mdns.Msg) *mdns.Msg {
	m.Extra = slices.DeleteFunc(m.Extra, func(rr mdns.RR) bool { return rr.Header().Rrtype == mdns.TypeOPT })
	return m
}

// judge records whether a server answered.
func (u *upstream) judge(server string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		delete(u.slow, server)
	} else {
		u.slow[server] = u.now()
	}
}

// order returns the servers, with those that failed recently last.
func (u *upstream) order() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.now()
	if now.Sub(u.checked) >= confCheck {
		u.checked = now
		u.reload()
	}
	var good, bad []string
	for _, s := range u.servers {
		if since, owes := u.slow[s]; owes && now.Sub(since) < penalty {
			bad = append(bad, s)
		} else {
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

// reload reads resolv.conf if it has changed. If the file cannot be read, the servers are
// kept. The cluster's own DNS address is left out, because questions would loop.
func (u *upstream) reload() {
	info, err := os.Stat(u.path)
	if err != nil || info.ModTime().Equal(u.modTime) {
		return
	}
	conf, err := mdns.ClientConfigFromFile(u.path)
	if err != nil {
		return
	}
	u.modTime = info.ModTime()
	u.servers = nil
	clear(u.slow)
	for _, s := range conf.Servers {
		if addr, err := netip.ParseAddr(s); err == nil && addr == u.self {
			continue
		}
		u.servers = append(u.servers, net.JoinHostPort(s, u.port))
	}
}
