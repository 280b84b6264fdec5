package tracestore

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

const (
	// askTime bounds how long the other apiservers are waited for. What one that does not answer
	// holds is missing, and the answer says so.
	askTime = time.Second
	// pageSpans is the number of spans in a message between apiservers: at most 17 MB if all of
	// them are as large as a span may be, and 0.3 MB as they are in practice.
	pageSpans = 500
	// maxNamed bounds the traces of one object in an answer.
	maxNamed = maxEarlier + 1
)

// Peer serves a Store to the other apiservers.
type Peer struct {
	tracev1.UnimplementedPeerServiceServer
	store *Store
	allow func(context.Context) error
}

// NewPeer returns a Peer. allow returns a gRPC status error if the caller is not an apiserver.
func NewPeer(s *Store, allow func(context.Context) error) *Peer { return &Peer{store: s, allow: allow} }

// GetSpans implements PeerService.
func (p *Peer) GetSpans(r *tracev1.GetSpansRequest, stream tracev1.PeerService_GetSpansServer) error {
	if err := p.allow(stream.Context()); err != nil {
		return err
	}
	id, err := traceIDOf(r.GetTraceId())
	if err != nil {
		return err
	}
	spans, dropped, _ := p.store.trace(id)
	for page := range slices.Chunk(spans, pageSpans) {
		out := &tracev1.GetSpansResponse{Dropped: dropped}
		for _, sp := range page {
			out.Spans = append(out.Spans, sp.wire(sp.remote))
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
	return nil
}

// ListTraces implements PeerService.
func (p *Peer) ListTraces(ctx context.Context, r *tracev1.ListTracesRequest) (*tracev1.ListTracesResponse, error) {
	if err := p.allow(ctx); err != nil {
		return nil, err
	}
	named := p.store.named(Object{Resource: r.GetResource(), Namespace: r.GetNamespace(), Name: r.GetName()})
	out := &tracev1.ListTracesResponse{}
	for _, n := range newestFirst(named)[:min(len(named), maxNamed)] {
		out.Traces = append(out.Traces, &tracev1.TraceStart{TraceId: n.id[:], StartUnixNano: int64(n.began)})
	}
	return out, nil
}

func traceIDOf(b []byte) (id TraceID, err error) {
	if copy(id[:], b) != len(id) || len(b) != len(id) {
		return id, status.Errorf(codes.InvalidArgument, "trace_id has %d bytes, want %d", len(b), len(id))
	}
	return id, nil
}

// SetPeers makes the Service ask the other apiservers too; it is called before Register. peers
// returns a connection to each of them.
func (s *Service) SetPeers(peers func() []grpc.ClientConnInterface) { s.peers = peers }

// ask calls f for all other apiservers at once. all reports whether all of them answered.
func ask[T any](ctx context.Context, s *Service, f func(context.Context, tracev1.PeerServiceClient) (T, error)) (answers []T, all bool) {
	if s.peers == nil {
		return nil, true
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	type answer struct {
		value T
		err   error
	}
	peers := s.peers()
	got := make(chan answer, len(peers))
	for _, conn := range peers {
		go func() {
			value, err := f(ctx, tracev1.NewPeerServiceClient(conn))
			got <- answer{value, err}
		}()
	}
	all = true
	for range peers {
		if a := <-got; a.err == nil {
			answers = append(answers, a.value)
		} else {
			all = false
		}
	}
	return answers, all
}

// part is what one apiserver holds of a trace.
type part struct {
	spans   []*span
	dropped bool
}

// trace returns the spans of a trace that the apiservers hold together.
func (s *Service) trace(ctx context.Context, id TraceID) (whole part) {
	whole.spans, whole.dropped, _ = s.store.trace(id)
	parts, all := ask(ctx, s, func(ctx context.Context, peer tracev1.PeerServiceClient) (part, error) {
		return spansOf(ctx, peer, id, s.store.cfg.TraceSpans)
	})
	whole.dropped = whole.dropped || !all
	if len(parts) == 0 {
		return whole
	}
	known := make(map[SpanID]bool, len(whole.spans))
	for _, sp := range whole.spans {
		known[sp.id] = true
	}
	for _, p := range parts {
		whole.dropped = whole.dropped || p.dropped
		for _, sp := range p.spans {
			if known[sp.id] {
				continue
			}
			if len(whole.spans) >= s.store.cfg.TraceSpans {
				whole.dropped = true
				break
			}
			known[sp.id] = true
			whole.spans = append(whole.spans, sp)
		}
	}
	return whole
}

// spansOf returns at most limit spans that a peer holds.
func spansOf(ctx context.Context, peer tracev1.PeerServiceClient, id TraceID, limit int) (p part, err error) {
	ctx, cancel := context.WithCancel(ctx) // ends the stream
	defer cancel()
	stream, err := peer.GetSpans(ctx, &tracev1.GetSpansRequest{TraceId: id[:]})
	if err != nil {
		return p, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return p, nil
		}
		if err != nil {
			return p, err
		}
		p.dropped = p.dropped || m.GetDropped()
		for _, w := range m.GetSpans() {
			if sp, ok := spanOf(w); ok {
				p.spans = append(p.spans, sp)
			}
		}
		if len(p.spans) >= limit {
			return p, nil
		}
	}
}

// spanOf is the inverse of span.wire.
func spanOf(w *tracev1.Span) (*span, bool) {
	sp := &span{
		service: w.GetService(), name: w.GetName(), remote: w.GetRemoteParent(), err: w.GetError(),
		start: uint64(max(0, w.GetStartUnixNano())), end: uint64(max(0, w.GetEndUnixNano())),
	}
	if !parseSpanID(w.GetSpanId(), &sp.id) || w.GetParentSpanId() != "" && !parseSpanID(w.GetParentSpanId(), &sp.parent) {
		return nil, false
	}
	for key, value := range w.GetAttributes() {
		sp.attributes = append(sp.attributes, attribute{key, value})
	}
	for _, l := range w.GetLinks() {
		var id SpanID
		if parseSpanID(l, &id) {
			sp.links = append(sp.links, id)
		}
	}
	return sp, true
}

func parseSpanID(text string, id *SpanID) bool {
	if len(text) != hex.EncodedLen(len(id)) {
		return false
	}
	_, err := hex.Decode(id[:], []byte(text))
	return err == nil
}

// named returns the traces with a span that names the object, and the start of the first span of
// each that any apiserver holds, newest first.
func (s *Service) named(ctx context.Context, o Object) []begun {
	o.Group = ""
	all := s.store.named(o)
	lists, _ := ask(ctx, s, func(ctx context.Context, peer tracev1.PeerServiceClient) (*tracev1.ListTracesResponse, error) {
		return peer.ListTraces(ctx, &tracev1.ListTracesRequest{Resource: o.Resource, Namespace: o.Namespace, Name: o.Name})
	})
	for _, l := range lists {
		for _, t := range l.GetTraces() {
			id, err := traceIDOf(t.GetTraceId())
			if err != nil {
				continue
			}
			at := uint64(max(0, t.GetStartUnixNano()))
			if began, ok := all[id]; !ok || at < began {
				all[id] = at
			}
		}
	}
	return newestFirst(all)
}

// newest returns the newest trace with a span that names the object.
func (s *Service) newest(ctx context.Context, o Object) (TraceID, bool) {
	if s.peers == nil {
		return s.store.newest(o)
	}
	if all := s.named(ctx, o); len(all) > 0 {
		return all[0].id, true
	}
	return TraceID{}, false
}

// earlier returns the n-th newest trace (counted from 1, by start time) that names the object and
// started no later than another trace.
func (s *Service) earlier(ctx context.Context, o Object, than TraceID, n int) (TraceID, bool) {
	limit := uint64(math.MaxUint64)
	for _, sp := range s.trace(ctx, than).spans {
		limit = min(limit, sp.start)
	}
	for _, b := range s.named(ctx, o) {
		if b.id == than || b.began > limit {
			continue
		}
		if n--; n == 0 {
			return b.id, true
		}
	}
	return TraceID{}, false
}
