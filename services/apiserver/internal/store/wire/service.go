package wire

import (
	"bytes"
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/store"
)

const (
	// aliveEvery is how often a watch checks that its member is not cut off, and aliveTime
	// bounds one check.
	aliveEvery = 2 * time.Second
	aliveTime  = 3 * time.Second
)

// Service serves a member's stores.
type Service struct {
	storev1.UnimplementedStoreServiceServer
	allow              func(context.Context) error
	lasting, transient atomic.Pointer[store.Store]
}

// NewService returns a service. allow returns a gRPC status error if the caller is not an
// apiserver: callers that it admits may write anything. Until Serve has provided a store, calls
// for it fail with UNAVAILABLE.
func NewService(allow func(context.Context) error) *Service { return &Service{allow: allow} }

// Register registers the service.
func (v *Service) Register(r grpc.ServiceRegistrar) { storev1.RegisterStoreServiceServer(r, v) }

// Serve provides the store of a place.
func (v *Service) Serve(place storev1.Place, s store.Store) {
	switch place {
	case storev1.Place_PLACE_LASTING:
		v.lasting.Store(&s)
	case storev1.Place_PLACE_TRANSIENT:
		v.transient.Store(&s)
	}
}

// store authorizes the caller and returns the store of a place. Its error is a gRPC status.
func (v *Service) store(ctx context.Context, place storev1.Place) (store.Store, error) {
	if err := v.allow(ctx); err != nil {
		return nil, err
	}
	var s *store.Store
	switch place {
	case storev1.Place_PLACE_LASTING:
		s = v.lasting.Load()
	case storev1.Place_PLACE_TRANSIENT:
		s = v.transient.Load()
	default:
		return nil, status.Errorf(codes.InvalidArgument, "unknown store %s", place)
	}
	if s == nil {
		return nil, failed(ctx, store.ErrUnavailable)
	}
	return *s, nil
}

// Get implements the service.
func (v *Service) Get(ctx context.Context, r *storev1.GetRequest) (*storev1.GetResponse, error) {
	s, err := v.store(ctx, r.Place)
	if err != nil {
		return nil, err
	}
	e, rev, err := s.Get(ctx, r.Key)
	switch {
	case err == nil:
		return &storev1.GetResponse{Entry: toEntry(e), Revision: int64(rev)}, nil
	case encode(err).Code == storev1.Code_CODE_NOT_FOUND:
		return &storev1.GetResponse{Revision: int64(rev)}, nil
	}
	return nil, failed(ctx, err)
}

// List implements the service.
func (v *Service) List(r *storev1.ListRequest, stream grpc.ServerStreamingServer[storev1.ListResponse]) error {
	ctx := stream.Context()
	s, err := v.store(ctx, r.Place)
	if err != nil {
		return err
	}
	page, err := s.List(ctx, r.Prefix, store.ListOptions{After: r.After, Limit: r.Limit, Revision: store.Revision(r.Revision)})
	if err != nil {
		return failed(ctx, err)
	}
	part, size := &storev1.ListResponse{}, 0
	for _, e := range page.Entries {
		if size += len(e.Key) + len(e.Value); size > partBytes && len(part.Entries) > 0 {
			if err := stream.Send(part); err != nil {
				return err
			}
			part, size = &storev1.ListResponse{}, len(e.Key)+len(e.Value)
		}
		part.Entries = append(part.Entries, toEntry(e))
	}
	part.Last, part.More, part.Count, part.Revision = true, page.More, page.Count, int64(page.Revision)
	return stream.Send(part)
}

// Commit implements the service.
func (v *Service) Commit(ctx context.Context, r *storev1.CommitRequest) (*storev1.CommitResponse, error) {
	s, err := v.store(ctx, r.Place)
	if err != nil {
		return nil, err
	}
	writes := make([]store.Write, len(r.Writes))
	for i, in := range r.Writes {
		w := store.Write{Key: in.Key, Value: in.Value, Expect: store.Revision(in.Expect), TTLSeconds: in.TtlSeconds}
		switch {
		case in.Delete:
			w.Value = nil
		case w.Value == nil:
			w.Value = []byte{}
		}
		if in.Unique {
			w.Settled = func(found []byte) bool { return bytes.Equal(found, in.Value) }
		}
		if in.FenceKey != "" {
			w.Fence = &store.Fence{Key: in.FenceKey, ModRevision: store.Revision(in.FenceRevision)}
		}
		if in.PeriodKey != "" {
			w.Period = &store.Fence{Key: in.PeriodKey, ModRevision: store.Revision(in.PeriodRevision)}
		}
		writes[i] = w
	}
	verdicts, err := s.Commit(ctx, writes)
	if err != nil {
		return nil, failed(ctx, err)
	}
	out := &storev1.CommitResponse{Verdicts: make([]*storev1.Verdict, len(verdicts))}
	room := 4 * partBytes // Current is optional, so it is bounded
	for i, verdict := range verdicts {
		o := &storev1.Verdict{Revision: int64(verdict.Revision)}
		if verdict.Err != nil {
			o.Error = encode(verdict.Err)
		}
		if c := verdict.Current; c != nil && (i == 0 || room >= len(c.Key)+len(c.Value)) {
			room -= len(c.Key) + len(c.Value)
			o.Current = toEntry(*c)
		}
		out.Verdicts[i] = o
	}
	return out, nil
}

// Revision implements the service.
func (v *Service) Revision(ctx context.Context, r *storev1.RevisionRequest) (*storev1.RevisionResponse, error) {
	s, err := v.store(ctx, r.Place)
	if err != nil {
		return nil, err
	}
	rev, err := s.Revision(ctx)
	if err != nil {
		return nil, failed(ctx, err)
	}
	return &storev1.RevisionResponse{Revision: int64(rev)}, nil
}

// Compact implements the service.
func (v *Service) Compact(ctx context.Context, r *storev1.CompactRequest) (*storev1.CompactResponse, error) {
	s, err := v.store(ctx, r.Place)
	if err != nil {
		return nil, err
	}
	if err := s.Compact(ctx, store.Revision(r.Revision)); err != nil {
		return nil, failed(ctx, err)
	}
	return &storev1.CompactResponse{}, nil
}

// Watch implements the service.
func (v *Service) Watch(stream grpc.BidiStreamingServer[storev1.WatchRequest, storev1.WatchResponse]) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s, err := v.store(ctx, r.Place)
	if err != nil {
		return err
	}
	after := store.Revision(r.After)
	if after == 0 {
		if after, err = s.Revision(ctx); err != nil {
			return failed(ctx, err)
		}
	}
	w, err := s.Watch(ctx, r.Prefix, after)
	if err != nil {
		return failed(ctx, err)
	}
	defer w.Close()
	if err := stream.Send(&storev1.WatchResponse{Revision: int64(after)}); err != nil {
		return err
	}
	go func() { // ends with the stream, which ends when this handler returns
		for {
			if _, err := stream.Recv(); err != nil {
				cancel(err)
				return
			}
			if err := w.Progress(ctx); err != nil {
				cancel(err)
				return
			}
		}
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := alive(ctx, s); err != nil {
			cancel(err)
		}
	}()
	err = pass(ctx, w, stream)
	cancel(nil)
	<-ended
	return err
}

// alive returns an error when the member is cut off from the others, because watches would then
// silently miss events. It returns nil when ctx ends.
func alive(ctx context.Context, s store.Store) error {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		ask, cancel := context.WithTimeout(ctx, aliveTime)
		_, err := s.Revision(ask)
		cancel()
		if err != nil && ctx.Err() == nil {
			return store.ErrUnavailable
		}
	}
}

// pass sends the batches of a watch, large ones in several messages.
func pass(ctx context.Context, w store.Watch, stream grpc.BidiStreamingServer[storev1.WatchRequest, storev1.WatchResponse]) error {
	for {
		b, err := w.Next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && stream.Context().Err() == nil {
				err = cause
			}
			return failed(stream.Context(), err)
		}
		part, size := &storev1.WatchResponse{}, 0
		for _, e := range b.Events {
			if size += len(e.Entry.Key) + len(e.Entry.Value); size > partBytes && len(part.Events) > 0 {
				// Each write has its own revision, so everything up to it has been sent.
				part.Revision = part.Events[len(part.Events)-1].Entry.ModRevision
				if err := stream.Send(part); err != nil {
					return err
				}
				part, size = &storev1.WatchResponse{}, len(e.Entry.Key)+len(e.Entry.Value)
			}
			part.Events = append(part.Events, &storev1.Event{Entry: toEntry(e.Entry), Deleted: e.Type == store.Deleted})
		}
		part.Revision = int64(b.Revision)
		if err := stream.Send(part); err != nil {
			return err
		}
	}
}
