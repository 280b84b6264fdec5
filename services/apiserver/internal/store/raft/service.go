package raft

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// maxRequestBytes bounds a request that is assembled from frames.
const maxRequestBytes = maxAppend * (maxValue + entryBytes)

// currentBytes bounds the conflicting entries in a response. They are optional.
const currentBytes = 2 << 20

// Service serves a member to the others. It must be registered before its server starts. Until
// Open is called with it, all calls fail with UNAVAILABLE.
type Service struct {
	raftv1.UnimplementedRaftServiceServer
	allow func(context.Context) error
	store atomic.Pointer[Store]
}

// NewService returns a service. allow returns a gRPC status error if the caller is not an
// apiserver: callers that it admits may vote and write.
func NewService(allow func(context.Context) error) *Service {
	return &Service{allow: allow}
}

// Register registers the service.
func (v *Service) Register(r grpc.ServiceRegistrar) { raftv1.RegisterRaftServiceServer(r, v) }

// member authorizes the caller and returns the store.
func (v *Service) member(ctx context.Context) (*Store, error) {
	if err := v.allow(ctx); err != nil {
		return nil, err
	}
	s := v.store.Load()
	if s == nil || s.closed.Load() {
		return nil, status.Error(codes.Unavailable, "the raft store is not running")
	}
	return s, nil
}

// meant is like member. It also checks that the request is meant for this member's id.
func (v *Service) meant(ctx context.Context, target string) (*Store, error) {
	s, err := v.member(ctx)
	if err != nil {
		return nil, err
	}
	if target != string(s.id) {
		return nil, status.Errorf(codes.FailedPrecondition, "the request is for %q, but this is %q", target, s.id)
	}
	return s, nil
}

// failed converts an error of the library to a gRPC status error.
func failed(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	case errors.Is(err, hraft.ErrTransportShutdown), errors.Is(err, hraft.ErrRaftShutdown):
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

// library passes a request to the library and returns its response.
func library[R any](ctx context.Context, v *Service, target string, command any, data io.Reader) (R, error) {
	var none R
	s, err := v.meant(ctx, target)
	if err != nil {
		return none, err
	}
	r, err := s.transport.handle(ctx, command, data)
	if err != nil {
		return none, failed(err)
	}
	return r.(R), nil
}

// AppendEntries implements the service.
func (v *Service) AppendEntries(ctx context.Context, r *raftv1.AppendEntriesRequest) (*raftv1.AppendEntriesResponse, error) {
	out, err := library[*hraft.AppendEntriesResponse](ctx, v, r.Header.GetTarget(), fromAppend(r), nil)
	if err != nil {
		return nil, err
	}
	return toAppended(out), nil
}

// AppendEntriesPipeline implements the service.
func (v *Service) AppendEntriesPipeline(stream grpc.BidiStreamingServer[raftv1.AppendEntriesPipelineRequest, raftv1.AppendEntriesPipelineResponse]) error {
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if frame.Request == nil {
			return status.Error(codes.InvalidArgument, "empty request")
		}
		// Check before receiving more frames.
		if _, err := v.meant(stream.Context(), frame.Request.Header.GetTarget()); err != nil {
			return err
		}
		req := fromAppend(frame.Request)
		for size := entriesSize(frame.Request.Entries); frame.More; {
			if frame, err = stream.Recv(); err != nil {
				return err
			}
			if size += entriesSize(frame.GetRequest().GetEntries()); size > maxRequestBytes {
				return status.Error(codes.ResourceExhausted, "request is too large")
			}
			req.Entries = append(req.Entries, fromAppend(frame.GetRequest()).Entries...)
		}
		out, err := library[*hraft.AppendEntriesResponse](stream.Context(), v, frame.GetRequest().GetHeader().GetTarget(), req, nil)
		if err != nil {
			return err
		}
		if err := stream.Send(&raftv1.AppendEntriesPipelineResponse{Response: toAppended(out)}); err != nil {
			return err
		}
	}
}

// RequestVote implements the service.
func (v *Service) RequestVote(ctx context.Context, r *raftv1.RequestVoteRequest) (*raftv1.RequestVoteResponse, error) {
	out, err := library[*hraft.RequestVoteResponse](ctx, v, r.Header.GetTarget(), &hraft.RequestVoteRequest{
		RPCHeader: fromHeader(r.Header), Candidate: r.Header.GetAddress(), Term: r.Term,
		LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm, LeadershipTransfer: r.LeadershipTransfer,
	}, nil)
	if err != nil {
		return nil, err
	}
	return &raftv1.RequestVoteResponse{Term: out.Term, Granted: out.Granted}, nil
}

// RequestPreVote implements the service.
func (v *Service) RequestPreVote(ctx context.Context, r *raftv1.RequestPreVoteRequest) (*raftv1.RequestPreVoteResponse, error) {
	out, err := library[*hraft.RequestPreVoteResponse](ctx, v, r.Header.GetTarget(), &hraft.RequestPreVoteRequest{
		RPCHeader: fromHeader(r.Header), Term: r.Term, LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm,
	}, nil)
	if err != nil {
		return nil, err
	}
	return &raftv1.RequestPreVoteResponse{Term: out.Term, Granted: out.Granted}, nil
}

// TimeoutNow implements the service.
func (v *Service) TimeoutNow(ctx context.Context, r *raftv1.TimeoutNowRequest) (*raftv1.TimeoutNowResponse, error) {
	_, err := library[*hraft.TimeoutNowResponse](ctx, v, r.Header.GetTarget(), &hraft.TimeoutNowRequest{RPCHeader: fromHeader(r.Header)}, nil)
	if err != nil {
		return nil, err
	}
	return &raftv1.TimeoutNowResponse{}, nil
}

// InstallSnapshot implements the service.
func (v *Service) InstallSnapshot(stream grpc.ClientStreamingServer[raftv1.InstallSnapshotRequest, raftv1.InstallSnapshotResponse]) error {
	r, err := stream.Recv()
	if err != nil {
		return err
	}
	if r.Header == nil {
		return status.Error(codes.InvalidArgument, "snapshot without a header")
	}
	out, err := library[*hraft.InstallSnapshotResponse](stream.Context(), v, r.Header.Target, &hraft.InstallSnapshotRequest{
		RPCHeader: fromHeader(r.Header), SnapshotVersion: hraft.SnapshotVersion(r.SnapshotVersion), Term: r.Term,
		Leader: r.Header.Address, LastLogIndex: r.LastLogIndex, LastLogTerm: r.LastLogTerm,
		Configuration: r.Configuration, ConfigurationIndex: r.ConfigurationIndex, Size: r.Size,
	}, &chunks{stream: stream, rest: r.Data})
	if err != nil {
		return err
	}
	return stream.SendAndClose(&raftv1.InstallSnapshotResponse{Term: out.Term, Success: out.Success})
}

// chunks reads the data of a snapshot's messages.
type chunks struct {
	stream grpc.ClientStreamingServer[raftv1.InstallSnapshotRequest, raftv1.InstallSnapshotResponse]
	rest   []byte
}

func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		r, err := c.stream.Recv()
		if err != nil {
			return 0, err
		}
		c.rest = r.Data
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Identify implements the service.
func (v *Service) Identify(ctx context.Context, _ *raftv1.IdentifyRequest) (*raftv1.IdentifyResponse, error) {
	s, err := v.member(ctx)
	if err != nil {
		return nil, err
	}
	r := &raftv1.IdentifyResponse{Id: string(s.id), LastIndex: s.raft.LastIndex()}
	for _, server := range s.servers() {
		r.Members = append(r.Members, string(server.ID))
	}
	return r, nil
}

// ConfirmTerm implements the service.
func (v *Service) ConfirmTerm(ctx context.Context, r *raftv1.ConfirmTermRequest) (*raftv1.ConfirmTermResponse, error) {
	s, err := v.meant(ctx, r.Target)
	if err != nil {
		return nil, err
	}
	return &raftv1.ConfirmTermResponse{Term: s.raft.CurrentTerm()}, nil
}

// ReadIndex implements the service.
func (v *Service) ReadIndex(ctx context.Context, r *raftv1.ReadIndexRequest) (*raftv1.ReadIndexResponse, error) {
	s, err := v.meant(ctx, r.Target)
	if err != nil {
		return nil, err
	}
	index, err := s.leaderIndex(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	return &raftv1.ReadIndexResponse{Index: index}, nil
}

// Propose implements the service.
func (v *Service) Propose(ctx context.Context, r *raftv1.ProposeRequest) (*raftv1.ProposeResponse, error) {
	s, err := v.meant(ctx, r.Target)
	if err != nil {
		return nil, err
	}
	if len(r.Operations) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no operations proposed")
	}
	for _, op := range r.Operations {
		if err := check(op); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	if s.raft.State() != hraft.Leader {
		return nil, refusal(errNotLeader)
	}
	res, err := s.proposals.do(ctx, r.Operations)
	if err != nil {
		return nil, refusal(err)
	}
	out := &raftv1.ProposeResponse{Outcomes: make([]*raftv1.Outcome, len(res.outcomes)), Index: res.index}
	room := int64(currentBytes)
	for i, o := range res.outcomes {
		out.Outcomes[i] = &raftv1.Outcome{Code: o.code, Revision: int64(o.rev)}
		if o.current != nil && (i == 0 || room >= o.current.size()) {
			room -= o.current.size()
			out.Outcomes[i].Current = o.current.proto()
		}
	}
	return out, nil
}

// refusal converts an error of the leader to a gRPC status error. Errors after which nothing
// was done remain recognizable by refused.
func refusal(err error) error {
	switch {
	case errors.Is(err, errNotLeader):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, store.ErrTooMany):
		// Not RESOURCE_EXHAUSTED: gRPC itself returns that for a response that is too large.
		return status.Error(codes.Aborted, err.Error())
	}
	return failed(err)
}

// refused reports whether err means that nothing was done or will be.
func refused(err error) bool {
	if errors.Is(err, errNotLeader) || errors.Is(err, store.ErrTooMany) {
		return true
	}
	switch status.Code(err) {
	case codes.FailedPrecondition, codes.Aborted, codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}
