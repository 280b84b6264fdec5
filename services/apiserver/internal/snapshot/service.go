package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/apistatus"
	snapshotv1 "keelson.dev/proto/keelson/snapshot/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/store"
)

// Path is the non-resource path that authorizes a save. Its readers can read all Secrets.
const Path = "/snapshot"

// Bounds of a save: its total duration, the longest time without progress, and the bytes per
// message. While a save runs, etcd cannot reuse the pages that it frees.
const (
	saveTime  = 30 * time.Minute
	stallTime = 30 * time.Second
	chunkSize = 256 << 10
)

// ServiceConfig configures a Service.
type ServiceConfig struct {
	// Lasting and Transient are the stores. Save fails if they cannot be saved (in-memory
	// stores, an external etcd).
	Lasting, Transient store.Store
	// Authorizer decides whether the caller may get Path.
	Authorizer authz.Authorizer
	// Apiserver is the name of this apiserver, and Program its version.
	Apiserver, Program string

	stall time.Duration // shortened by tests; zero means stallTime
}

// Service implements SnapshotService.
type Service struct {
	snapshotv1.UnimplementedSnapshotServiceServer
	cfg  ServiceConfig
	busy atomic.Bool
}

// NewService returns a service.
func NewService(cfg ServiceConfig) *Service {
	if cfg.stall <= 0 {
		cfg.stall = stallTime
	}
	return &Service{cfg: cfg}
}

// Register registers the service.
func (s *Service) Register(r grpc.ServiceRegistrar) { snapshotv1.RegisterSnapshotServiceServer(r, s) }

var errStalled = errors.New("the snapshot was not read fast enough")

// Save implements SnapshotService.
func (s *Service) Save(_ *snapshotv1.SaveRequest, stream grpc.ServerStreamingServer[snapshotv1.SaveResponse]) error {
	ctx := stream.Context()
	if err := s.may(ctx); err != nil {
		return err
	}
	lasting, ok := store.As[Lasting](s.cfg.Lasting)
	transient, also := store.As[Transient](s.cfg.Transient)
	if !ok || !also {
		return status.Error(codes.FailedPrecondition,
			"this apiserver does not store the state: with --etcd-servers, run `etcdctl snapshot save` there (restore accepts that file); with --memory, nothing is kept")
	}
	if !s.busy.CompareAndSwap(false, true) {
		return status.Error(codes.ResourceExhausted, "this apiserver is already taking a snapshot; try again later")
	}
	// Send blocks while the client does not read, and only the end of this call interrupts it.
	// Another goroutine sends, so that this one can end the call.
	ctx, cancel := context.WithTimeoutCause(ctx, saveTime, errStalled)
	defer cancel()
	out := &sender{stream: stream, hash: sha256.New(), sent: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() {
		defer s.busy.Store(false)
		done <- s.save(ctx, out, lasting, transient)
	}()
	began, stalled := time.Now(), time.NewTimer(s.cfg.stall)
	defer stalled.Stop()
	for {
		select {
		case <-out.sent:
			stalled.Reset(s.cfg.stall)
			continue
		case err := <-done:
			if err == nil {
				slog.InfoContext(ctx, "snapshot saved", "user", request.UserFrom(ctx).Name, "bytes", out.size, "took", time.Since(began))
				return nil
			}
			return wire(ctx, err)
		case <-stalled.C:
			return wire(ctx, errStalled)
		case <-ctx.Done():
			return wire(ctx, context.Cause(ctx))
		}
	}
}

func (s *Service) save(ctx context.Context, out *sender, lasting Lasting, transient Transient) error {
	m, err := write(ctx, out, Manifest{Apiserver: s.cfg.Apiserver, Program: s.cfg.Program}, lasting, transient)
	if err == nil {
		err = out.flush()
	}
	if err != nil {
		return err
	}
	return out.stream.Send(&snapshotv1.SaveResponse{End: &snapshotv1.SaveEnd{
		Size: out.size, Sha256: out.hash.Sum(nil), EtcdRevision: m.EtcdRevision, RaftRevision: m.RaftRevision,
	}})
}

// may returns a gRPC status error if the caller may not take a snapshot.
func (s *Service) may(ctx context.Context) error {
	a := &request.Attributes{User: request.UserFrom(ctx), Verb: "get", Path: Path}
	allowed, reason, err := s.cfg.Authorizer.Authorize(ctx, a)
	if err != nil {
		return wire(ctx, err)
	}
	if !allowed {
		return wire(ctx, authz.Forbidden(a, reason))
	}
	return nil
}

// sender sends what is written to it in chunks of chunkSize.
type sender struct {
	stream grpc.ServerStreamingServer[snapshotv1.SaveResponse]
	hash   hash.Hash
	size   int64
	chunk  []byte
	sent   chan struct{}
}

func (s *sender) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), chunkSize-len(s.chunk))
		s.chunk = append(s.chunk, p[:n]...)
		p = p[n:]
		if len(s.chunk) == chunkSize {
			if err := s.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

// flush sends the current chunk.
func (s *sender) flush() error {
	if len(s.chunk) == 0 {
		return nil
	}
	s.hash.Write(s.chunk)
	s.size += int64(len(s.chunk))
	if err := s.stream.Send(&snapshotv1.SaveResponse{Data: s.chunk}); err != nil {
		return err
	}
	s.chunk = make([]byte, 0, chunkSize) // the transport may still read the previous one
	select {
	case s.sent <- struct{}{}:
	default:
	}
	return nil
}

// wire converts an error to a gRPC status error.
func wire(ctx context.Context, err error) error {
	var se *apierrors.StatusError
	switch {
	case errors.Is(err, errStalled):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.As(err, &se):
		return apistatus.ToGRPC(&se.ErrStatus)
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed):
		return status.Error(codes.Unavailable, err.Error())
	}
	if st, ok := status.FromError(err); ok {
		return st.Err()
	}
	return status.Error(codes.Internal, fmt.Sprintf("snapshot: %v", err))
}
