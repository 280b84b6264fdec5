package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// EventType says what happened.
type EventType int

// The types of events.
const (
	Added EventType = iota + 1
	Modified
	Deleted
	Bookmark
)

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

// Event is one change of an object.
type Event[T Object] struct {
	Type EventType
	// Object is the object as it is now; of a deletion, its last state. It is nil
	// in a bookmark.
	Object T
	// Old is the object as it was before, in Modified and Deleted events of a
	// Cache. A plain watch leaves it nil.
	Old T
	// ResourceVersion is where to resume a watch after this event.
	ResourceVersion string
	// Traceparent is the W3C trace context of the write that caused the event,
	// or empty: initial state has none.
	Traceparent string
	// InitialEnd marks the bookmark that ends the initial state.
	InitialEnd bool
}

// Watch reports changes in order, each once, until ctx ends, the caller stops,
// or the server ends it. An error is the last element; a server that merely
// closes the stream yields none. Resume from the last event's ResourceVersion;
// apierrors.IsResourceExpired says that this is no longer possible.
func (r Resource[T]) Watch(ctx context.Context, o WatchOptions) iter.Seq2[Event[T], error] {
	return func(yield func(Event[T], error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		what := r.what("watch", o.Namespace, o.Name)
		stream, err := r.c.rpc.Watch(ctx, &resourcev1.WatchRequest{
			Ref:               r.kind.Ref(o.Namespace, o.Name, ""),
			LabelSelector:     o.LabelSelector,
			FieldSelector:     o.FieldSelector,
			ResourceVersion:   o.ResourceVersion,
			SendInitialEvents: o.SendInitialEvents,
			AllowBookmarks:    o.AllowBookmarks,
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
