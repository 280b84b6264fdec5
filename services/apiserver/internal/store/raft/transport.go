package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
	"google.golang.org/grpc"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
)

const (
	// voteTime and appendTime bound one request to a peer.
	voteTime   = time.Second
	appendTime = 5 * time.Second
	// frameBytes is the approximate size of one message of a request.
	frameBytes = 1 << 20
	// chunkBytes is the size of a chunk of a snapshot on the wire.
	chunkBytes = 256 << 10
	// inFlight bounds the requests of a pipeline that have no response yet.
	inFlight = 32
)

// transport implements the library's Transport over the gRPC service. Addresses are ids: the
// name in an id determines the connection.
type transport struct {
	self    hraft.ServerID
	dial    func(member string) (grpc.ClientConnInterface, error)
	consume chan hraft.RPC

	ctx    context.Context
	cancel context.CancelFunc

	mu        sync.Mutex
	conns     map[string]*remote
	heartbeat func(hraft.RPC)
}

// remote is a member that this one has called.
type remote struct {
	raftv1.RaftServiceClient
	conn grpc.ClientConnInterface

	mu sync.Mutex
	// contact is when each of the member's ids last answered.
	contact map[hraft.ServerID]time.Time
}

func newTransport(self hraft.ServerID, dial func(member string) (grpc.ClientConnInterface, error)) *transport {
	t := &transport{self: self, dial: dial, consume: make(chan hraft.RPC), conns: map[string]*remote{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// peer returns the member with an id.
func (t *transport) peer(id hraft.ServerID) (*remote, error) { return t.member(nameOf(id)) }

func (t *transport) member(name string) (*remote, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, hraft.ErrTransportShutdown
	}
	if p, ok := t.conns[name]; ok {
		return p, nil
	}
	conn, err := t.dial(name)
	if err != nil {
		return nil, fmt.Errorf("member %s: %w", name, err)
	}
	p := &remote{RaftServiceClient: raftv1.NewRaftServiceClient(conn), conn: conn, contact: map[hraft.ServerID]time.Time{}}
	t.conns[name] = p
	return p, nil
}

// stop ends the requests of this member. Close also closes the connections.
func (t *transport) stop() { t.cancel() }

// Close implements the library's WithClose.
func (t *transport) Close() error {
	t.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, p := range t.conns {
		if c, ok := p.conn.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	t.conns = map[string]*remote{}
	return errors.Join(errs...)
}

// answered records that a member answered under this id.
func (p *remote) answered(id hraft.ServerID) {
	p.mu.Lock()
	p.contact[id] = time.Now()
	p.mu.Unlock()
}

// since returns how long ago a member last answered under an id, or an hour if it never did.
func (p *remote) since(id hraft.ServerID) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.contact[id]
	if !ok {
		return time.Hour
	}
	return time.Since(at)
}

// call makes one request to a peer.
func call[R any](t *transport, id hraft.ServerID, limit time.Duration, f func(context.Context, *remote) (R, error)) (r R, err error) {
	p, err := t.peer(id)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(t.ctx, limit)
	defer cancel()
	if r, err = f(ctx, p); err == nil {
		p.answered(id)
	}
	return r, err
}

// Consumer implements the library's Transport.
func (t *transport) Consumer() <-chan hraft.RPC { return t.consume }

// LocalAddr implements the library's Transport.
func (t *transport) LocalAddr() hraft.ServerAddress { return hraft.ServerAddress(t.self) }

// EncodePeer implements the library's Transport.
func (t *transport) EncodePeer(_ hraft.ServerID, addr hraft.ServerAddress) []byte {
	return []byte(addr)
}

// DecodePeer implements the library's Transport.
func (t *transport) DecodePeer(b []byte) hraft.ServerAddress { return hraft.ServerAddress(b) }

// SetHeartbeatHandler implements the library's Transport.
func (t *transport) SetHeartbeatHandler(f func(hraft.RPC)) {
	t.mu.Lock()
	t.heartbeat = f
	t.mu.Unlock()
}

// RequestVote implements the library's Transport.
func (t *transport) RequestVote(id hraft.ServerID, _ hraft.ServerAddress, args *hraft.RequestVoteRequest, resp *hraft.RequestVoteResponse) error {
	r, err := call(t, id, voteTime, func(ctx context.Context, p *remote) (*raftv1.RequestVoteResponse, error) {
		return p.RequestVote(ctx, &raftv1.RequestVoteRequest{
			Header: toHeader(id, args.RPCHeader), Term: args.Term, LastLogIndex: args.LastLogIndex,
			LastLogTerm: args.LastLogTerm, LeadershipTransfer: args.LeadershipTransfer,
		})
	})
	if err == nil {
		resp.RPCHeader.ProtocolVersion = hraft.ProtocolVersionMax
		resp.Term, resp.Granted = r.Term, r.Granted
	}
	return err
}

// RequestPreVote implements the library's WithPreVote. Without it, the library would not use
// pre-votes.
func (t *transport) RequestPreVote(id hraft.ServerID, _ hraft.ServerAddress, args *hraft.RequestPreVoteRequest, resp *hraft.RequestPreVoteResponse) error {
	r, err := call(t, id, voteTime, func(ctx context.Context, p *remote) (*raftv1.RequestPreVoteResponse, error) {
		return p.RequestPreVote(ctx, &raftv1.RequestPreVoteRequest{
			Header: toHeader(id, args.RPCHeader), Term: args.Term, LastLogIndex: args.LastLogIndex, LastLogTerm: args.LastLogTerm,
		})
	})
	if err == nil {
		resp.RPCHeader.ProtocolVersion = hraft.ProtocolVersionMax
		resp.Term, resp.Granted = r.Term, r.Granted
	}
	return err
}

// TimeoutNow implements the library's Transport.
func (t *transport) TimeoutNow(id hraft.ServerID, _ hraft.ServerAddress, args *hraft.TimeoutNowRequest, resp *hraft.TimeoutNowResponse) error {
	_, err := call(t, id, voteTime, func(ctx context.Context, p *remote) (*raftv1.TimeoutNowResponse, error) {
		return p.TimeoutNow(ctx, &raftv1.TimeoutNowRequest{Header: toHeader(id, args.RPCHeader)})
	})
	resp.RPCHeader.ProtocolVersion = hraft.ProtocolVersionMax
	return err
}

// AppendEntries implements the library's Transport.
func (t *transport) AppendEntries(id hraft.ServerID, _ hraft.ServerAddress, args *hraft.AppendEntriesRequest, resp *hraft.AppendEntriesResponse) error {
	r, err := call(t, id, appendTime, func(ctx context.Context, p *remote) (*raftv1.AppendEntriesResponse, error) {
		req := toAppend(id, args)
		if entriesSize(req.Entries) <= frameBytes {
			return p.AppendEntries(ctx, req)
		}
		stream, err := p.AppendEntriesPipeline(ctx)
		if err != nil {
			return nil, err
		}
		if err := sendFrames(stream.Send, req); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		answer, err := stream.Recv()
		return answer.GetResponse(), err
	})
	if err == nil {
		fromAppended(r, resp)
	}
	return err
}

func entriesSize(entries []*raftv1.Entry) (n int) {
	for _, e := range entries {
		n += len(e.Data) + len(e.Extensions) + 32
	}
	return n
}

// sendFrames sends a request in as many messages as it needs.
func sendFrames(send func(*raftv1.AppendEntriesPipelineRequest) error, req *raftv1.AppendEntriesRequest) error {
	entries := req.Entries
	for first := true; first || len(entries) > 0; first = false {
		n, size := 0, 0
		for n < len(entries) && (n == 0 || size+len(entries[n].Data) <= frameBytes) {
			size += len(entries[n].Data) + len(entries[n].Extensions) + 32
			n++
		}
		frame := &raftv1.AppendEntriesRequest{Header: req.Header, Entries: entries[:n]}
		if first {
			frame.Term, frame.LeaderCommitIndex = req.Term, req.LeaderCommitIndex
			frame.PrevLogEntry, frame.PrevLogTerm = req.PrevLogEntry, req.PrevLogTerm
		}
		entries = entries[n:]
		if err := send(&raftv1.AppendEntriesPipelineRequest{Request: frame, More: len(entries) > 0}); err != nil {
			return err
		}
	}
	return nil
}

// InstallSnapshot implements the library's Transport.
func (t *transport) InstallSnapshot(id hraft.ServerID, _ hraft.ServerAddress, args *hraft.InstallSnapshotRequest, resp *hraft.InstallSnapshotResponse, data io.Reader) error {
	p, err := t.peer(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	stream, err := p.InstallSnapshot(ctx)
	if err != nil {
		return err
	}
	req := &raftv1.InstallSnapshotRequest{
		Header: toHeader(id, args.RPCHeader), SnapshotVersion: int32(args.SnapshotVersion), Term: args.Term,
		LastLogIndex: args.LastLogIndex, LastLogTerm: args.LastLogTerm,
		Configuration: args.Configuration, ConfigurationIndex: args.ConfigurationIndex, Size: args.Size,
	}
	for {
		buf := make([]byte, chunkBytes) // gRPC may still use the previous one
		n, err := io.ReadFull(data, buf)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if n > 0 || req.Header != nil {
			req.Data = buf[:n]
			if err := stream.Send(req); err != nil {
				break // CloseAndRecv returns the reason
			}
			req = &raftv1.InstallSnapshotRequest{}
		}
		if err != nil {
			break
		}
	}
	r, err := stream.CloseAndRecv()
	if err != nil {
		return err
	}
	p.answered(id)
	resp.RPCHeader.ProtocolVersion = hraft.ProtocolVersionMax
	resp.Term, resp.Success = r.Term, r.Success
	return nil
}

// handle passes a request to the library and waits for its response.
func (t *transport) handle(ctx context.Context, command any, data io.Reader) (any, error) {
	answer := make(chan hraft.RPCResponse, 1)
	rpc := hraft.RPC{Command: command, Reader: data, RespChan: answer}
	var fast func(hraft.RPC)
	if a, ok := command.(*hraft.AppendEntriesRequest); ok && heartbeat(a) {
		t.mu.Lock()
		fast = t.heartbeat
		t.mu.Unlock()
	}
	if fast != nil {
		fast(rpc)
	} else {
		select {
		case t.consume <- rpc:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.ctx.Done():
			return nil, hraft.ErrTransportShutdown
		}
	}
	select {
	case r := <-answer:
		return r.Response, r.Error
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.ctx.Done():
		return nil, hraft.ErrTransportShutdown
	}
}
