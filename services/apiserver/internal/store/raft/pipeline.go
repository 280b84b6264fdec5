package raft

import (
	"context"
	"fmt"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
	"google.golang.org/grpc"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
)

// pipeline sends AppendEntries requests without waiting for the responses to earlier ones.
type pipeline struct {
	peer   *remote
	id     hraft.ServerID
	stream grpc.BidiStreamingClient[raftv1.AppendEntriesPipelineRequest, raftv1.AppendEntriesPipelineResponse]
	ctx    context.Context
	cancel context.CancelFunc
	sent   chan *appended // waiting for their responses, oldest first
	done   chan hraft.AppendFuture
	wg     sync.WaitGroup
}

// appended is one request of a pipeline.
type appended struct {
	start time.Time
	args  *hraft.AppendEntriesRequest
	resp  *hraft.AppendEntriesResponse
	err   error
	ready chan struct{}
}

// Error implements the library's Future.
func (a *appended) Error() error {
	<-a.ready
	return a.err
}

// Start implements the library's AppendFuture.
func (a *appended) Start() time.Time { return a.start }

// Request implements the library's AppendFuture.
func (a *appended) Request() *hraft.AppendEntriesRequest { return a.args }

// Response implements the library's AppendFuture.
func (a *appended) Response() *hraft.AppendEntriesResponse { return a.resp }

// AppendEntriesPipeline implements the library's Transport.
func (t *transport) AppendEntriesPipeline(id hraft.ServerID, _ hraft.ServerAddress) (hraft.AppendPipeline, error) {
	p, err := t.peer(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(t.ctx)
	stream, err := p.AppendEntriesPipeline(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	l := &pipeline{peer: p, id: id, stream: stream, ctx: ctx, cancel: cancel,
		sent: make(chan *appended, inFlight), done: make(chan hraft.AppendFuture, inFlight)}
	l.wg.Go(l.receive)
	return l, nil
}

// AppendEntries implements the library's AppendPipeline.
func (l *pipeline) AppendEntries(args *hraft.AppendEntriesRequest, resp *hraft.AppendEntriesResponse) (hraft.AppendFuture, error) {
	a := &appended{start: time.Now(), args: args, resp: resp, ready: make(chan struct{})}
	if err := sendFrames(l.stream.Send, toAppend(l.id, args)); err != nil {
		l.cancel()
		return nil, fmt.Errorf("append entries to %s: %w", l.id, err)
	}
	select {
	case l.sent <- a:
		return a, nil
	case <-l.ctx.Done():
		return nil, hraft.ErrPipelineShutdown
	}
}

// receive matches responses to requests.
func (l *pipeline) receive() {
	defer l.cancel()
	for {
		var a *appended
		select {
		case a = <-l.sent:
		case <-l.ctx.Done():
			return
		}
		r, err := l.stream.Recv()
		if err != nil {
			// The library takes everything that arrives on done as a sign of life, so do not
			// report the failure there. It notices it with its next request.
			a.err = err
			close(a.ready)
			return
		}
		fromAppended(r.Response, a.resp)
		l.peer.answered(l.id)
		close(a.ready)
		select {
		case l.done <- a:
		case <-l.ctx.Done():
			return
		}
	}
}

// Consumer implements the library's AppendPipeline.
func (l *pipeline) Consumer() <-chan hraft.AppendFuture { return l.done }

// Close implements the library's AppendPipeline.
func (l *pipeline) Close() error {
	l.cancel()
	l.wg.Wait()
	return nil
}
