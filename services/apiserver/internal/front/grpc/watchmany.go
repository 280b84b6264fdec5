package grpc

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/internal/rpc"
)

// WatchMany serves many watches on one stream with two goroutines: one reads commands, the other
// sends. A watch has none: the watch cache reports which watches have something to send, and the
// sender takes turns among them.
//
// States of a watch: opening (added; the pipeline authorizes it and finds its start), running, and
// ended (its WatchEnd was sent, and its id is free). A watch that runs waits for events, for
// credits, or for its turn.
//
// Invariants:
//
//   - A watch sends at most its credits, and never after its WatchEnd. Every added watch gets
//     exactly one WatchEnd, unless the stream ends first.
//   - A turn is at most `turn` events, so that a watch with many events delays another by at most
//     that many for each watch before it. A watch without credits takes nothing but the memory of
//     its queue, which is bounded as that of a Watch.
//   - A watch counts as a call in flight on its connection until it has ended. At most maxWatches
//     are in a stream.
//   - Nothing outlives the stream: its end closes all watches, also those that are opening.
//
// Failures: a watch that is refused, expires or falls behind ends alone. A malformed command, a
// client that goes away and the end of the stream's lifetime end all of them. A client that does
// not read the stream holds up all of its watches, each of which falls behind as that of a slow
// reader.
const (
	// maxWatches bounds the watches of one stream.
	maxWatches = 1000
	// maxOpening bounds the watches of a stream that are opened at once. Commands that follow
	// wait.
	maxOpening = 16
	// turn is the largest number of events that a watch sends before others have their turn.
	turn = 64
	// unlimited is the number of credits that are never used up.
	unlimited = math.MaxUint32
)

// streamed is a watch of a stream.
type streamed struct {
	id      uint32
	view    view
	request *resourcev1.WatchRequest
	leave   func() // of the connection

	// What follows is guarded by the stream's mutex.
	credits uint32
	queued  bool           // in the stream's queue
	opened  bool           // watch or err is set
	removed bool           // by the client
	watch   pipeline.Watch // nil while it is opening, and if it could not be opened
	err     error          // why it could not be opened
	cancel  func()         // ends opening
}

// many is a stream of watches.
type many struct {
	s      *Service
	ctx    context.Context
	stream grpc.BidiStreamingServer[resourcev1.WatchManyRequest, resourcev1.WatchManyResponse]

	opening chan struct{} // one element for each watch that is opening
	wait    sync.WaitGroup
	wake    chan struct{} // buffered

	mu      sync.Mutex
	watches map[uint32]*streamed
	queue   []*streamed // those that may have something to send, in order of their turns
	closed  bool
}

// WatchMany implements ResourceService.
func (s *Service) WatchMany(stream grpc.BidiStreamingServer[resourcev1.WatchManyRequest, resourcev1.WatchManyResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	m := &many{
		s: s, ctx: ctx, stream: stream,
		opening: make(chan struct{}, maxOpening), wake: make(chan struct{}, 1), watches: map[uint32]*streamed{},
	}
	defer m.close()
	defer cancel()
	failed := make(chan error, 1)
	go func() { failed <- m.receive() }() // it ends when this function has returned
	lifetime := time.NewTimer(s.lifetime())
	defer lifetime.Stop()
	for {
		w := m.next()
		if w == nil {
			select {
			case <-m.wake:
			case err := <-failed:
				return err
			case <-lifetime.C:
				return nil
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			}
			continue
		}
		if err := m.send(w); err != nil {
			return err
		}
		select {
		case err := <-failed:
			return err
		case <-lifetime.C:
			return nil
		default:
		}
	}
}

// receive executes the client's commands until the client ends the stream.
func (m *many) receive() error {
	for {
		r, err := m.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case r.GetAdd() != nil:
			err = m.add(r.GetAdd())
		case r.GetRemove() != nil:
			m.remove(r.GetRemove().GetId())
		case r.GetGrant() != nil:
			m.grant(r.GetGrant().GetId(), r.GetGrant().GetCredits())
		default:
			err = apierrors.NewBadRequest("a WatchManyRequest without a command")
		}
		if err != nil {
			return wire(m.ctx, err)
		}
	}
}

// add begins a watch. Its error ends the stream.
func (m *many) add(r *resourcev1.AddWatch) error {
	w := &streamed{id: r.GetId(), request: r.GetWatch(), credits: r.GetCredits(), leave: func() {}}
	if w.id == 0 {
		return apierrors.NewBadRequest("the id of a watch must not be 0")
	}
	m.mu.Lock()
	if _, taken := m.watches[w.id]; taken {
		m.mu.Unlock()
		return apierrors.NewBadRequest("the id of a new watch is that of another of the stream")
	}
	n := len(m.watches)
	if n >= maxWatches+maxOpening {
		// The client has been told often enough; without this bound, ends that it does not read
		// would pile up.
		m.mu.Unlock()
		return apierrors.NewTooManyRequestsError("too many watches in one stream")
	}
	m.watches[w.id] = w
	m.mu.Unlock()
	if n >= maxWatches {
		m.opened(w, nil, apierrors.NewTooManyRequests("a stream has at most 1,000 watches", 0))
		return nil
	}
	leave, err := rpc.Occupy(m.ctx)
	if err != nil {
		m.opened(w, nil, apierrors.NewTooManyRequests(status.Convert(err).Message(), 0))
		return nil
	}
	w.leave = leave
	if w.view, err = viewOf(w.request.GetView()); err != nil {
		m.opened(w, nil, err)
		return nil
	}
	select {
	case m.opening <- struct{}{}:
	case <-m.ctx.Done():
		leave()
		return m.ctx.Err()
	}
	ctx, cancel := context.WithCancel(m.ctx)
	m.mu.Lock()
	w.cancel = cancel
	if w.removed || m.closed {
		cancel()
	}
	if m.closed {
		m.mu.Unlock()
		leave()
		return nil
	}
	m.wait.Add(1)
	m.mu.Unlock()
	go func() {
		defer m.wait.Done()
		defer func() { <-m.opening }()
		m.open(ctx, w)
		cancel()
	}()
	return nil
}

// open begins a watch in the pipeline. ctx bounds only how long that takes.
func (m *many) open(ctx context.Context, w *streamed) {
	r := w.request
	watch, err := m.s.api.Watch(ctx, target(r.GetRef()), pipeline.WatchOptions{
		LabelSelector: r.GetLabelSelector(), FieldSelector: r.GetFieldSelector(),
		ResourceVersion:   r.GetResourceVersion(),
		SendInitialEvents: r.GetSendInitialEvents(), AllowBookmarks: r.GetAllowBookmarks(),
		Ready: func() { m.ready(w) },
	})
	m.opened(w, watch, err)
}

// opened records a watch that runs, or could not be opened.
func (m *many) opened(w *streamed, watch pipeline.Watch, err error) {
	m.mu.Lock()
	w.watch, w.err, w.opened, w.request, w.cancel = watch, err, true, nil, nil
	closed := m.closed
	m.mu.Unlock()
	if closed {
		w.close()
		return
	}
	m.ready(w)
}

// close ends a watch and frees its place.
func (w *streamed) close() {
	if w.watch != nil {
		w.watch.Close()
	}
	w.leave()
}

// remove ends a watch.
func (m *many) remove(id uint32) {
	m.mu.Lock()
	w := m.watches[id]
	if w != nil {
		w.removed = true
		if w.cancel != nil {
			w.cancel()
		}
	}
	m.mu.Unlock()
	if w != nil {
		m.ready(w)
	}
}

// grant adds to a watch's credits.
func (m *many) grant(id, credits uint32) {
	m.mu.Lock()
	w := m.watches[id]
	if w != nil {
		w.credits = uint32(min(uint64(w.credits)+uint64(credits), unlimited))
	}
	m.mu.Unlock()
	if w != nil {
		m.ready(w)
	}
}

// ready puts a watch at the end of the queue, if it is not in it. The watch cache calls it.
func (m *many) ready(w *streamed) {
	m.mu.Lock()
	if !w.queued {
		w.queued = true
		m.queue = append(m.queue, w)
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// next takes the next watch from the queue, or returns nil.
func (m *many) next() *streamed {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.queue) == 0 {
		return nil
	}
	w := m.queue[0]
	m.queue[0] = nil
	m.queue = m.queue[1:]
	if len(m.queue) == 0 {
		m.queue = nil
	}
	w.queued = false
	return w
}

// send sends the events of a turn, or the end of the watch. Its error ends the stream.
func (m *many) send(w *streamed) error {
	m.mu.Lock()
	if m.watches[w.id] != w || !w.opened {
		m.mu.Unlock()
		return nil // it has ended, or is opening
	}
	n := int(min(w.credits, turn))
	removed := w.removed
	m.mu.Unlock()
	switch {
	case removed:
		return m.end(w, nil)
	case w.err != nil:
		return m.end(w, w.err)
	}
	events, end := w.watch.Poll(m.ctx, n)
	for _, ev := range events {
		frame, err := m.s.frame(ev, w.view)
		if err != nil {
			return wire(m.ctx, err)
		}
		if err := m.stream.SendMsg(w.response(watchManyEvent, frame)); err != nil {
			return err
		}
	}
	if end != nil {
		return m.end(w, end)
	}
	m.mu.Lock()
	if w.credits != unlimited {
		w.credits -= uint32(len(events)) //nolint:gosec // at most turn
	}
	more := len(events) == n && w.credits > 0
	m.mu.Unlock()
	if more {
		m.ready(w)
	}
	return nil
}

// end sends the end of a watch.
func (m *many) end(w *streamed, err error) error {
	m.mu.Lock()
	delete(m.watches, w.id)
	m.mu.Unlock()
	w.close()
	var body []byte
	if err != nil && !pipeline.IsWatchOver(err) {
		a := statusAny(err)
		body = append(appendAnyHead(nil, watchEndStatus, a.GetTypeUrl(), len(a.GetValue())), a.GetValue()...)
	}
	return m.stream.SendMsg(w.response(watchManyEnd, body))
}

// Fields of WatchManyResponse and WatchEnd.
const (
	watchManyID    protowire.Number = 1
	watchManyEvent protowire.Number = 2
	watchManyEnd   protowire.Number = 3
	watchEndStatus protowire.Number = 1
)

// response returns a WatchManyResponse with one field, whose bytes are not copied.
func (w *streamed) response(field protowire.Number, body []byte) encoded {
	head := make([]byte, 0, 16)
	head = protowire.AppendVarint(protowire.AppendTag(head, watchManyID, protowire.VarintType), uint64(w.id))
	head = protowire.AppendVarint(protowire.AppendTag(head, field, protowire.BytesType), uint64(len(body)))
	return encoded{mem.SliceBuffer(head), mem.SliceBuffer(body)}
}

// close ends all watches.
func (m *many) close() {
	m.mu.Lock()
	m.closed = true
	var open []*streamed
	for _, w := range m.watches {
		if w.opened {
			open = append(open, w)
		}
	}
	m.watches, m.queue = map[uint32]*streamed{}, nil
	m.mu.Unlock()
	for _, w := range open {
		w.close()
	}
	m.wait.Wait() // those that were opening close themselves
}
