package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// EventType is the type of an [Event].
type EventType int

// The types of events.
const (
	// Added means that the object is new to the watch: it was created, it began to match,
	// or it is part of the initial state.
	Added EventType = iota + 1
	// Modified means that the object changed.
	Modified
	// Deleted means that the object is gone or no longer matches.
	Deleted
	// Bookmark means that nothing else happened up to the event's ResourceVersion.
	Bookmark
)

// String returns the name of the type.
func (t EventType) String() string {
	switch t {
	case Added:
		return "Added"
	case Modified:
		return "Modified"
	case Deleted:
		return "Deleted"
	case Bookmark:
		return "Bookmark"
	}
	return fmt.Sprintf("EventType(%d)", int(t))
}

// Event is a change of one object, or a bookmark.
type Event[T Object] struct {
	// Type is the type of the event.
	Type EventType
	// Object is the object as it is now, or its last state if it was deleted. It is nil
	// in a Bookmark.
	Object T
	// Old is the object before the change, in Modified and Deleted events of a [Cache].
	// In events of a plain watch it is nil.
	Old T
	// ResourceVersion is the revision of the event: a watch that starts there continues
	// after it.
	ResourceVersion string
	// Traceparent is the W3C trace context of the write that caused the event, or empty
	// if it had none, as in the initial state.
	Traceparent string
	// InitialEnd is true in the Bookmark that ends the initial state.
	InitialEnd bool
}

// Watch returns an iterator over changes, in order and each once, that ends when ctx ends,
// the caller stops, or the server ends the watch, which it does after 30 to 60 minutes at
// the latest. An error is the last element; a server that closes the stream in an orderly
// way yields none. Resume with the ResourceVersion of the last event. If that state is no
// longer known, the error is a 410 (apierrors.IsResourceExpired): list again. A [Cache]
// does all of this.
func (r Resource[T]) Watch(ctx context.Context, o WatchOptions) iter.Seq2[Event[T], error] {
	return func(yield func(Event[T], error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		what := r.what("watch", o.Namespace, o.Name)
		stream, err := r.watch(ctx, &resourcev1.WatchRequest{
			Ref:               r.kind.Ref(o.Namespace, o.Name, r.part),
			LabelSelector:     o.LabelSelector,
			FieldSelector:     o.FieldSelector,
			ResourceVersion:   o.ResourceVersion,
			SendInitialEvents: o.SendInitialEvents,
			AllowBookmarks:    o.AllowBookmarks,
			View:              r.view,
		})
		if err != nil {
			yield(Event[T]{}, fromRPC(ctx, what, err))
			return
		}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(Event[T]{}, fromRPC(ctx, what, err))
				return
			}
			ev, err := r.event(resp)
			if !yield(ev, err) || err != nil {
				return
			}
		}
	}
}

// watch begins a watch, in a stream of its own or in one of many.
func (r Resource[T]) watch(ctx context.Context, req *resourcev1.WatchRequest) (watchStream, error) {
	if r.over != nil {
		return r.over.watch(ctx, req)
	}
	return r.c.rpc.Watch(ctx, req)
}

// Follow is a Watch that goes on until ctx ends: where the watch ends or the connection breaks, it
// continues after the last event, with a delay that grows up to 5 s while that fails. Its error,
// the last element, is one that continuing cannot help: the state is no longer known (a 410,
// apierrors.IsResourceExpired: list again), or the server refuses the watch. It requests
// bookmarks, so that a quiet watch stays resumable, and yields them.
func (r Resource[T]) Follow(ctx context.Context, o WatchOptions) iter.Seq2[Event[T], error] {
	return func(yield func(Event[T], error) bool) {
		o.AllowBookmarks = true
		delay := time.Duration(0)
		for {
			for ev, err := range r.Watch(ctx, o) {
				if err != nil {
					if ctx.Err() == nil && !IsUnavailable(err) {
						yield(ev, err)
						return
					}
					break
				}
				if delay = 0; !yield(ev, nil) {
					return
				}
				// Within an initial state, there is nothing to continue from.
				if initial := o.ResourceVersion == "" || o.SendInitialEvents; !initial || ev.InitialEnd {
					o.ResourceVersion, o.SendInitialEvents = ev.ResourceVersion, false
				}
			}
			delay = min(max(2*delay, minBackoff), maxBackoff)
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay/2 + rand.N(delay)/2): //nolint:gosec // jitter needs no secrecy.
			}
		}
	}
}

func (r Resource[T]) event(resp *resourcev1.WatchResponse) (Event[T], error) {
	ev := Event[T]{
		ResourceVersion: resp.GetResourceVersion(),
		Traceparent:     resp.GetTraceparent(),
		InitialEnd:      resp.GetInitialEventsEnd(),
	}
	switch resp.GetType() {
	case resourcev1.WatchResponse_TYPE_ADDED:
		ev.Type = Added
	case resourcev1.WatchResponse_TYPE_MODIFIED:
		ev.Type = Modified
	case resourcev1.WatchResponse_TYPE_DELETED:
		ev.Type = Deleted
	case resourcev1.WatchResponse_TYPE_BOOKMARK:
		ev.Type = Bookmark
		return ev, nil
	default:
		return ev, fmt.Errorf("client: the server sent an event of type %v", resp.GetType())
	}
	var err error
	ev.Object, err = r.decode(resp.GetObject())
	return ev, err
}
