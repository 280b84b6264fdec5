package client

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.dev/proto/apistatus"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Watches carries many watches over few streams (ResourceService.WatchMany), which costs the
// server a fraction of a stream for each. [Resource.Over] makes the watches of a resource, and so
// those of a [Cache] of it, use it:
//
//	watches := client.NewWatches(c)
//	defer watches.Close()
//	cache := client.NewCacheOf(client.For[*corev1.Pod](c).Over(watches), client.CacheOptions[*corev1.Pod]{Namespace: "shop"})
//
// A watch behaves as one with a stream of its own: it has its own permission, position and end, and
// one that is read slowly holds up no other. If a stream breaks, its watches fail with UNAVAILABLE,
// and each that is begun again, as a Cache and [Resource.Follow] do by themselves, is on another
// stream, at another apiserver if there is one.
//
// It is safe for concurrent use. It holds a goroutine for each 1,000 watches until Close.
type Watches struct {
	rpc    resourcev1.ResourceServiceClient
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	streams []*carrier
}

const (
	// perStream is the largest number of watches in a stream.
	perStream = 1000
	// window is how many events a watch receives ahead of its reader.
	window = 128
)

// NewWatches returns a Watches that opens its streams at c when they are needed. The caller closes
// it.
func NewWatches(c *Client) *Watches {
	ctx, cancel := context.WithCancel(context.Background())
	return &Watches{rpc: c.rpc, ctx: ctx, cancel: cancel}
}

// Close ends all watches, and returns when no goroutine is left.
func (w *Watches) Close() {
	w.mu.Lock()
	w.cancel()
	w.mu.Unlock()
	w.wait.Wait()
}

// carrier is a stream of watches.
type carrier struct {
	stream resourcev1.ResourceService_WatchManyClient
	cancel context.CancelFunc
	dead   chan struct{} // closed when err is set
	err    error         // why the stream ended: io.EOF if the server ended it in an orderly way

	sending sync.Mutex // serializes Send

	mu      sync.Mutex
	last    uint32
	watches map[uint32]*carried
}

// carried is a watch in a stream. Its reader calls Recv.
type carried struct {
	ctx     context.Context
	carrier *carrier
	id      uint32
	events  chan *resourcev1.WatchManyResponse // has room for all that the server may send
	read    uint32                             // events since the last grant
}

// watchStream is what the reader of a watch needs of it.
type watchStream interface {
	Recv() (*resourcev1.WatchResponse, error)
}

// watch begins a watch, which ends with ctx.
func (w *Watches) watch(ctx context.Context, r *resourcev1.WatchRequest) (watchStream, error) {
	for {
		s, err := w.carrier()
		if err != nil {
			return nil, err
		}
		c := s.add(ctx)
		if c == nil {
			continue // it has ended, or filled up, in between
		}
		err = s.send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Add{
			Add: &resourcev1.AddWatch{Id: c.id, Watch: r, Credits: window},
		}})
		if err != nil {
			return nil, err
		}
		// The end of ctx frees the place in the stream, also if the reader has stopped.
		context.AfterFunc(ctx, func() {
			_ = s.send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Remove{
				Remove: &resourcev1.RemoveWatch{Id: c.id},
			}})
		})
		return c, nil
	}
}

// carrier returns a stream with a free place.
func (w *Watches) carrier() (*carrier, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx.Err() != nil {
		return nil, status.Error(codes.Canceled, "the watches are closed")
	}
	live := w.streams[:0]
	var free *carrier
	for _, s := range w.streams {
		select {
		case <-s.dead:
			continue
		default:
		}
		live = append(live, s)
		if free == nil && s.free() {
			free = s
		}
	}
	clear(w.streams[len(live):])
	w.streams = live
	if free != nil {
		return free, nil
	}
	ctx, cancel := context.WithCancel(w.ctx)
	stream, err := w.rpc.WatchMany(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &carrier{stream: stream, cancel: cancel, dead: make(chan struct{}), watches: map[uint32]*carried{}}
	w.streams = append(w.streams, s)
	w.wait.Go(s.receive)
	return s, nil
}

func (s *carrier) free() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.watches) < perStream && s.last < math.MaxUint32
}

// add registers a watch. It returns nil if there is no place.
func (s *carrier) add(ctx context.Context) *carried {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || len(s.watches) >= perStream || s.last == math.MaxUint32 {
		return nil
	}
	s.last++
	c := &carried{ctx: ctx, carrier: s, id: s.last, events: make(chan *resourcev1.WatchManyResponse, window+1)}
	s.watches[c.id] = c
	return c
}

func (s *carrier) send(r *resourcev1.WatchManyRequest) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if err := s.stream.Send(r); err != nil {
		<-s.dead // receive learns the cause
		return s.err
	}
	return nil
}

// receive distributes what the server sends until the stream ends.
func (s *carrier) receive() {
	defer s.cancel()
	for {
		r, err := s.stream.Recv()
		if err == nil {
			err = s.deliver(r)
		}
		if err != nil {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
			close(s.dead)
			return
		}
	}
}

// deliver queues a response for its watch. A response that has no room is the server's mistake.
func (s *carrier) deliver(r *resourcev1.WatchManyResponse) error {
	s.mu.Lock()
	c := s.watches[r.GetId()]
	if r.GetEnd() != nil {
		delete(s.watches, r.GetId())
	}
	s.mu.Unlock()
	switch {
	case c == nil:
		return status.Errorf(codes.Internal, "the server sent an event of watch %d, which does not exist", r.GetId())
	case c.ctx.Err() != nil:
		return nil // its reader has gone
	}
	select {
	case c.events <- r:
		return nil
	default:
		return status.Errorf(codes.Internal, "the server sent more events of watch %d than it may", r.GetId())
	}
}

// Recv returns the next event, or io.EOF if the server ended the watch in an orderly way.
func (c *carried) Recv() (*resourcev1.WatchResponse, error) {
	select {
	case r := <-c.events:
		return c.event(r)
	case <-c.ctx.Done():
		return nil, status.FromContextError(c.ctx.Err()).Err()
	case <-c.carrier.dead:
	}
	select {
	case r := <-c.events: // what arrived before the end
		return c.event(r)
	default:
		return nil, c.carrier.err
	}
}

func (c *carried) event(r *resourcev1.WatchManyResponse) (*resourcev1.WatchResponse, error) {
	if end := r.GetEnd(); end != nil {
		if end.GetStatus() == nil {
			return nil, io.EOF
		}
		var st metav1.Status
		if err := st.Unmarshal(end.GetStatus().GetValue()); err != nil {
			return nil, status.Errorf(codes.Internal, "the server sent a Status that cannot be decoded: %v", err)
		}
		return nil, apistatus.ToGRPC(&st)
	}
	if c.read++; c.read >= window/2 {
		err := c.carrier.send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Grant{
			Grant: &resourcev1.GrantCredits{Id: c.id, Credits: c.read},
		}})
		if err != nil && !errors.Is(err, io.EOF) && c.ctx.Err() == nil {
			return r.GetEvent(), nil // the next Recv reports it, after what has arrived
		}
		c.read = 0
	}
	return r.GetEvent(), nil
}
