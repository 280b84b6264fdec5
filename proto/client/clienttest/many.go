package clienttest

import (
	"context"
	"math"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"keelson.dev/proto/apistatus"
	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// viewed returns the Any of an object in a view.
func viewed(obj client.Object, v resourcev1.View) (*anypb.Any, error) {
	switch v {
	case resourcev1.View_VIEW_METADATA:
		meta := metav1.PartialObjectMetadata{ObjectMeta: *part(obj, "ObjectMeta").Addr().Interface().(*metav1.ObjectMeta)}
		data, err := meta.Marshal()
		return &anypb.Any{TypeUrl: "type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata", Value: data}, err
	case resourcev1.View_VIEW_WITHOUT_MANAGED_FIELDS:
		obj = clone(obj)
		obj.SetManagedFields(nil)
	}
	return encode(obj)
}

// many is a WatchMany stream. Each of its watches is a goroutine that runs Watch.
type many struct {
	stream  grpc.BidiStreamingServer[resourcev1.WatchManyRequest, resourcev1.WatchManyResponse]
	mu      sync.Mutex // of all, and serializes Send
	granted *sync.Cond
	watches map[uint32]*one
}

// one is a watch of a stream, as the stream of a Watch.
type one struct {
	grpc.ServerStreamingServer[resourcev1.WatchResponse]
	m       *many
	ctx     context.Context
	cancel  func()
	id      uint32
	credits uint32
}

// WatchMany implements ResourceService.
func (s *Server) WatchMany(stream grpc.BidiStreamingServer[resourcev1.WatchManyRequest, resourcev1.WatchManyResponse]) error {
	m := &many{stream: stream, watches: map[uint32]*one{}}
	m.granted = sync.NewCond(&m.mu)
	ctx, cancel := context.WithCancel(stream.Context())
	var wait sync.WaitGroup
	defer wait.Wait()
	defer context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.granted.Broadcast()
	})()
	defer func() {
		cancel()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.granted.Broadcast()
	}()
	// A cut ends the stream, as it would a connection.
	s.mu.Lock()
	cut := s.cut
	s.mu.Unlock()
	commands := make(chan *resourcev1.WatchManyRequest)
	failed := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case commands <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case err := <-failed:
			return err
		case <-cut:
			return errCut()
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case r := <-commands:
			if a := r.GetAdd(); a != nil {
				w := &one{m: m, id: a.GetId(), credits: a.GetCredits()}
				w.ctx, w.cancel = context.WithCancel(ctx)
				m.mu.Lock()
				taken := m.watches[w.id] != nil || w.id == 0
				if !taken {
					m.watches[w.id] = w
				}
				m.mu.Unlock()
				if taken {
					w.cancel()
					return rpcError(apierrors.NewBadRequest("the id of a watch is 0 or that of another"))
				}
				wait.Go(func() { w.end(s.Watch(a.GetWatch(), w)) })
				continue
			}
			m.command(r)
		}
	}
}

// command executes a command that adds no watch.
func (m *many) command(r *resourcev1.WatchManyRequest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.watches[r.GetRemove().GetId()]; w != nil {
		w.cancel()
	}
	if w := m.watches[r.GetGrant().GetId()]; w != nil {
		w.credits = uint32(min(uint64(w.credits)+uint64(r.GetGrant().GetCredits()), math.MaxUint32)) //nolint:gosec // bounded.
	}
	m.granted.Broadcast()
}

// Context implements grpc.ServerStream.
func (w *one) Context() context.Context { return w.ctx }

// Send implements grpc.ServerStreamingServer. It waits for credits.
func (w *one) Send(r *resourcev1.WatchResponse) error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	for w.credits == 0 && w.ctx.Err() == nil {
		w.m.granted.Wait()
	}
	if err := w.ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	if w.credits != math.MaxUint32 {
		w.credits--
	}
	return w.m.stream.Send(&resourcev1.WatchManyResponse{Id: w.id, Response: &resourcev1.WatchManyResponse_Event{Event: r}})
}

// end sends the end of a watch whose error is err.
func (w *one) end(err error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	end := &resourcev1.WatchEnd{}
	if st := apistatus.FromGRPC(status.Convert(err)); w.ctx.Err() == nil && st != nil {
		data, merr := st.ErrStatus.Marshal()
		if merr == nil {
			end.Status = &anypb.Any{TypeUrl: "type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.Status", Value: data}
		}
	}
	w.cancel()
	delete(w.m.watches, w.id)
	_ = w.m.stream.Send(&resourcev1.WatchManyResponse{Id: w.id, Response: &resourcev1.WatchManyResponse_End{End: end}})
}
