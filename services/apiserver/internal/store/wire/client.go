package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/store"
)

const (
	// settleTime bounds how long Client repeats a call that did nothing, or tries to resolve
	// the outcome of a write.
	settleTime = 15 * time.Second
	// callTime bounds one attempt. Members try about that long themselves.
	callTime = 14 * time.Second
)

// Members are the members whose stores a Client uses.
type Members struct {
	// Names returns the names of the current members.
	Names func() []string
	// Dial returns a connection to a member.
	Dial func(name string) (grpc.ClientConnInterface, error)

	mu    sync.Mutex
	conns map[string]grpc.ClientConnInterface
	// current is the member that is tried first.
	current string
}

// Close closes the connections.
func (m *Members) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		if c, ok := c.(io.Closer); ok {
			_ = c.Close()
		}
	}
	m.conns = nil
}

// pick returns the member to call. It is the current one, unless the last call to it failed
// (not) or it is no longer a member; then it is the next one.
func (m *Members) pick(not string) (string, storev1.StoreServiceClient, error) {
	names := m.Names()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(names) == 0 {
		return "", nil, fmt.Errorf("no member is known: %w", store.ErrUnavailable)
	}
	if i := slices.Index(names, m.current); m.current == not || i < 0 {
		m.current = names[(i+1)%len(names)]
	}
	c, err := m.conn(m.current)
	if err != nil {
		return m.current, nil, err
	}
	return m.current, storev1.NewStoreServiceClient(c), nil
}

// conn returns the connection to a member. The caller holds m.mu.
func (m *Members) conn(name string) (grpc.ClientConnInterface, error) {
	if c, ok := m.conns[name]; ok {
		return c, nil
	}
	c, err := m.Dial(name)
	if err != nil {
		return nil, err
	}
	if m.conns == nil {
		m.conns = map[string]grpc.ClientConnInterface{}
	}
	m.conns[name] = c
	return c, nil
}

// Conns returns connections to all members.
func (m *Members) Conns() []grpc.ClientConnInterface {
	names := m.Names()
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []grpc.ClientConnInterface
	for _, name := range names {
		if c, err := m.conn(name); err == nil {
			out = append(out, c)
		}
	}
	return out
}

// Client is a store.Store that calls the members' stores.
type Client struct {
	place      storev1.Place
	members    *Members
	settleTime time.Duration

	mu     sync.Mutex
	closed bool
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// NewClient returns a client of one of the members' stores.
func NewClient(m *Members, place storev1.Place) *Client {
	c := &Client{place: place, members: m, settleTime: settleTime}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close ends the watches. Later calls fail with store.ErrClosed.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// elsewhere reports whether err means that nothing was done and that another member may
// succeed.
func elsewhere(err error) bool {
	if _, said := from(err); said {
		return status.Code(err) == codes.Unavailable
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// read makes a call that may be repeated, at one member after another.
func read[R any](ctx context.Context, c *Client, call func(context.Context, storev1.StoreServiceClient) (R, error)) (out R, err error) {
	deadline := time.Now().Add(c.settleTime)
	not := ""
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if c.isClosed() {
			return out, store.ErrClosed
		}
		name, client, dialErr := c.members.pick(not)
		if err = dialErr; err == nil {
			try, cancel := context.WithTimeout(ctx, callTime)
			out, err = call(try, client)
			cancel()
		}
		if err == nil {
			return out, nil
		}
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if dialErr == nil && !elsewhere(err) {
			err, _ = from(err)
			return out, err
		}
		if time.Now().Add(pause).After(deadline) {
			return out, fmt.Errorf("%w: %s", store.ErrUnavailable, err.Error())
		}
		not = name
		_ = sleep(ctx, pause)
	}
}

// sleep waits for d, or returns ctx's error if ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Get implements store.Store.
func (c *Client) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	r, err := read(ctx, c, func(ctx context.Context, s storev1.StoreServiceClient) (*storev1.GetResponse, error) {
		return s.Get(ctx, &storev1.GetRequest{Place: c.place, Key: key})
	})
	switch {
	case err != nil:
		return store.Entry{}, 0, err
	case r.Entry == nil:
		return store.Entry{}, store.Revision(r.Revision), store.ErrNotFound
	}
	return fromEntry(r.Entry), store.Revision(r.Revision), nil
}

// List implements store.Store.
func (c *Client) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	return read(ctx, c, func(ctx context.Context, s storev1.StoreServiceClient) (page store.Page, err error) {
		stream, err := s.List(ctx, &storev1.ListRequest{Place: c.place, Prefix: prefix, After: o.After, Limit: o.Limit, Revision: int64(o.Revision)})
		for err == nil {
			var part *storev1.ListResponse
			if part, err = stream.Recv(); err != nil {
				break
			}
			for _, e := range part.Entries {
				page.Entries = append(page.Entries, fromEntry(e))
			}
			if part.Last {
				page.More, page.Count, page.Revision = part.More, part.Count, store.Revision(part.Revision)
				_, err = stream.Recv() // the end of the stream
				break
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
			if page.Revision == 0 {
				err = status.Error(codes.Unavailable, "the list ended before its last part")
			}
		}
		return page, err
	})
}

// Revision implements store.Store.
func (c *Client) Revision(ctx context.Context) (store.Revision, error) {
	r, err := read(ctx, c, func(ctx context.Context, s storev1.StoreServiceClient) (*storev1.RevisionResponse, error) {
		return s.Revision(ctx, &storev1.RevisionRequest{Place: c.place})
	})
	return store.Revision(r.GetRevision()), err
}

// Voting returns nil if a member answers that belongs to a quorum. It is the readiness check of
// an apiserver without stores.
func (c *Client) Voting(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	_, err := c.Revision(ctx)
	return err
}

// readyTime bounds Voting.
const readyTime = 2 * time.Second

// Compact implements store.Store.
func (c *Client) Compact(ctx context.Context, rev store.Revision) error {
	_, err := read(ctx, c, func(ctx context.Context, s storev1.StoreServiceClient) (*storev1.CompactResponse, error) {
		return s.Compact(ctx, &storev1.CompactRequest{Place: c.place, Revision: int64(rev)})
	})
	return err
}

// Commit implements store.Store. When ctx ends, it still completes the writes that it has sent,
// and gives up those that it has not.
func (c *Client) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.isClosed() {
		return nil, store.ErrClosed
	}
	verdicts := make([]store.Verdict, len(writes))
	for first := 0; first < len(writes); {
		last, size := first, 0
		for last < len(writes) && last-first < maxWrites && (last == first || size+len(writes[last].Value) <= 4*partBytes) {
			size += len(writes[last].Key) + len(writes[last].Value)
			last++
		}
		if err := ctx.Err(); err != nil {
			for i := first; i < len(writes); i++ {
				verdicts[i].Err = err
			}
			break
		}
		c.commit(ctx, writes[first:last], verdicts[first:last])
		first = last
	}
	return verdicts, nil
}

// commit sends writes in one request, and resolves unknown outcomes.
func (c *Client) commit(ctx context.Context, writes []store.Write, verdicts []store.Verdict) {
	deadline := time.Now().Add(c.settleTime)
	not := ""
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		name, sent, err := c.send(ctx, not, writes, verdicts)
		switch {
		case err == nil:
			return
		case sent && !refused(err):
			for i := range writes {
				verdicts[i] = c.settle(ctx, &writes[i], err, deadline)
			}
			return
		}
		nothing, said := from(err)
		if said && !elsewhere(err) || ctx.Err() != nil || c.isClosed() || time.Now().Add(pause).After(deadline) {
			if !said {
				nothing = fmt.Errorf("%w: %s", store.ErrUnavailable, err.Error())
			}
			if ctx.Err() != nil {
				nothing = ctx.Err()
			}
			for i := range verdicts {
				verdicts[i] = store.Verdict{Err: nothing}
			}
			return
		}
		not = name
		_ = sleep(ctx, pause)
	}
}

// refused reports whether err means that nothing was done or will be: the store, or the check
// of the caller's rights, refused the request before it began.
func refused(err error) bool {
	if e, said := from(err); said {
		return !errors.Is(e, store.ErrUnknownOutcome)
	}
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented:
		return true
	}
	return false
}

// send makes one attempt at a member. sent reports whether the request may have reached it.
func (c *Client) send(ctx context.Context, not string, writes []store.Write, verdicts []store.Verdict) (name string, sent bool, err error) {
	name, client, err := c.members.pick(not)
	if err != nil {
		return name, false, err
	}
	r := &storev1.CommitRequest{Place: c.place, Writes: make([]*storev1.Write, len(writes))}
	for i := range writes {
		w := &writes[i]
		out := &storev1.Write{
			Key: w.Key, Value: w.Value, Delete: w.Value == nil, Expect: int64(w.Expect), TtlSeconds: w.TTLSeconds, Unique: w.Settled != nil,
		}
		if w.Fence != nil {
			out.FenceKey, out.FenceRevision = w.Fence.Key, int64(w.Fence.ModRevision)
		}
		if w.Period != nil {
			out.PeriodKey, out.PeriodRevision = w.Period.Key, int64(w.Period.ModRevision)
		}
		r.Writes[i] = out
	}
	// When ctx ends, the attempt continues, so that the outcome is known.
	try, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
	defer cancel()
	var at peer.Peer // set once the call has a connection
	out, err := client.Commit(try, r, grpc.Peer(&at))
	if err != nil {
		return name, at.Addr != nil, err
	}
	if len(out.Verdicts) != len(writes) {
		return name, true, status.Errorf(codes.Internal, "member %s returned %d verdicts for %d writes", name, len(out.Verdicts), len(writes))
	}
	for i, v := range out.Verdicts {
		verdicts[i] = store.Verdict{Revision: store.Revision(v.Revision)}
		if v.Error != nil {
			verdicts[i] = store.Verdict{Err: decode(v.Error)}
		}
		if v.Current != nil {
			e := fromEntry(v.Current)
			verdicts[i].Current = &e
		}
	}
	return name, true, nil
}

// settle resolves the outcome of a write whose reply was lost.
func (c *Client) settle(ctx context.Context, w *store.Write, why error, deadline time.Time) store.Verdict {
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	unknown := store.Verdict{Err: fmt.Errorf("write %s: %w: %s", w.Key, store.ErrUnknownOutcome, why.Error())}
	name := ""
	for w.Expect > 0 && ctx.Err() == nil && !c.isClosed() {
		// Either the first attempt was applied, and the condition cannot hold any more, or this
		// attempt is.
		again := make([]store.Verdict, 1)
		at, _, err := c.send(ctx, name, []store.Write{*w}, again)
		if err != nil {
			name = at
			_ = sleep(ctx, 50*time.Millisecond)
			continue
		}
		if again[0].Err == nil {
			return again[0]
		}
		if e := again[0].Current; e != nil && w.Value != nil && w.Settled != nil && w.Settled(e.Value) {
			return store.Verdict{Revision: e.ModRevision}
		}
		if !errors.Is(again[0].Err, store.ErrTooMany) && !errors.Is(again[0].Err, store.ErrUnavailable) {
			break
		}
		_ = sleep(ctx, 50*time.Millisecond)
	}
	if w.Value == nil || w.Settled == nil {
		return unknown
	}
	if e, _, err := c.Get(ctx, w.Key); err == nil && w.Settled(e.Value) {
		return store.Verdict{Revision: e.ModRevision}
	}
	return unknown
}
