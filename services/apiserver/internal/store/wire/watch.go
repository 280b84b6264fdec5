package wire

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// batches is how many batches are received ahead of Next.
const batches = 4

// Watch implements store.Store.
func (c *Client) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, store.ErrClosed
	}
	c.wg.Add(1) // also while the watch is being opened
	c.mu.Unlock()
	w, err := read(ctx, c, func(call context.Context, s storev1.StoreServiceClient) (*watch, error) {
		return c.begin(call, s, prefix, after)
	})
	if err != nil {
		c.wg.Done()
		return nil, err
	}
	go func() {
		defer c.wg.Done()
		w.receive()
	}()
	return w, nil
}

// begin opens a watch at one member, and waits until the member has confirmed it.
func (c *Client) begin(call context.Context, s storev1.StoreServiceClient, prefix string, after store.Revision) (*watch, error) {
	// The watch outlives the call that opens it.
	ctx, cancel := context.WithCancel(c.ctx)
	stop := context.AfterFunc(call, cancel)
	stream, err := s.Watch(ctx)
	if err == nil {
		err = stream.Send(&storev1.WatchRequest{Place: c.place, Prefix: prefix, After: int64(after)})
	}
	if err == nil || stream != nil {
		_, err = stream.Recv() // also returns why Send failed
	}
	if !stop() && err == nil {
		err = call.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &watch{stream: stream, ctx: ctx, cancel: cancel, got: make(chan store.Batch, batches), ended: make(chan struct{})}, nil
}

type watch struct {
	stream grpc.BidiStreamingClient[storev1.WatchRequest, storev1.WatchResponse]
	ctx    context.Context
	cancel context.CancelFunc
	got    chan store.Batch
	// ended is closed when the stream has ended, after err was set.
	ended chan struct{}
	err   error

	mu sync.Mutex // guards Send
}

// receive receives batches until the stream ends.
func (w *watch) receive() {
	defer close(w.ended)
	for {
		r, err := w.stream.Recv()
		if err != nil {
			w.err, _ = from(err)
			if w.ctx.Err() != nil {
				w.err = store.ErrClosed
			}
			return
		}
		b := store.Batch{Revision: store.Revision(r.Revision)}
		for _, e := range r.Events {
			ev := store.Event{Type: store.Put, Entry: fromEntry(e.Entry)}
			if e.Deleted {
				ev = store.Event{Type: store.Deleted, Entry: store.Entry{Key: e.Entry.Key, ModRevision: store.Revision(e.Entry.ModRevision)}}
			}
			b.Events = append(b.Events, ev)
		}
		select {
		case w.got <- b:
		case <-w.ctx.Done():
			w.err = store.ErrClosed
			return
		}
	}
}

// Next implements store.Watch.
func (w *watch) Next(ctx context.Context) (store.Batch, error) {
	select {
	case b := <-w.got:
		return b, nil
	default:
	}
	select {
	case b := <-w.got:
		return b, nil
	case <-ctx.Done():
		return store.Batch{}, ctx.Err()
	case <-w.ended:
	}
	select {
	case b := <-w.got: // received before the end
		return b, nil
	default:
		return store.Batch{}, w.err
	}
}

// Progress implements store.Watch.
func (w *watch) Progress(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// If the stream has ended, Next returns the error.
	_ = w.stream.Send(&storev1.WatchRequest{})
	return nil
}

// Close implements store.Watch.
func (w *watch) Close() { w.cancel() }
