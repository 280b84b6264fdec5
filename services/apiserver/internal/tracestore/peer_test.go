package tracestore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

func everyone(context.Context) error { return nil }

// reach returns a connection to the PeerService of an apiserver.
func reach(t *testing.T, peer tracev1.PeerServiceServer) *grpc.ClientConn {
	t.Helper()
	address := serve(t, func(g *grpc.Server) { tracev1.RegisterPeerServiceServer(g, peer) })
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// apiserver is a Store and the Service that reads it and its peers.
func apiserver(t *testing.T, cfg Config, peers ...tracev1.PeerServiceServer) (*Store, *Service) {
	t.Helper()
	s := New(cfg)
	service := NewService(s, written{"pods/n/p": parent(1, 1), "pods/n/q": ""}, allow{"ann": "get pods get /debug/traces"}, nil)
	conns := make([]grpc.ClientConnInterface, len(peers))
	for i, p := range peers {
		conns[i] = reach(t, p)
	}
	service.SetPeers(func() []grpc.ClientConnInterface { return conns })
	return s, service
}

func spansIn(t *testing.T, r *tracev1.GetTraceResponse) string {
	t.Helper()
	var out []string
	for _, sp := range r.GetSpans() {
		out = append(out, sp.GetService()+" "+strings.TrimPrefix(sp.GetName(), "step-"))
	}
	return strings.Join(out, ", ")
}

// A trace whose spans were sent to several apiservers is whole, whichever of them is asked.
func TestTraceIsCollectedFromAllApiservers(t *testing.T) {
	naming := func(pod string) []*commonpb.KeyValue {
		return []*commonpb.KeyValue{str(keyPod, pod), str(keyNamespace, "n")}
	}
	b, c := New(Config{}), New(Config{})
	a, service := apiserver(t, Config{}, NewPeer(b, everyone), NewPeer(c, everyone))
	a.Add(of("apiserver", step(1, 1, 0, 0), step(1, 2, 1, 10)))
	b.Add(of("scheduler", step(1, 3, 2, 20, naming("p")...), step(1, 2, 1, 10))) // one of them twice
	failed := step(1, 4, 3, 30, str("k", "v"))
	failed.Flags = remoteFlag
	failed.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no such image"}
	failed.Links = []*tracepb.Span_Link{{SpanId: spanID(7)}}
	c.Add(of("node", failed))

	got, err := service.GetTrace(as("ann"), &tracev1.GetTraceRequest{Resource: "pods", Namespace: "n", Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if s := spansIn(t, got); s != "apiserver 1, apiserver 2, scheduler 3, node 4" || got.GetDropped() {
		t.Errorf("%s, dropped %v", s, got.GetDropped())
	}
	last := got.GetSpans()[3]
	if last.GetParentSpanId() != "0000000000000003" || last.GetAttributes()["k"] != "v" || last.GetError() != "no such image" ||
		!slices.Equal(last.GetLinks(), []string{"0000000000000007"}) || last.GetStartUnixNano() != 30 || last.GetEndUnixNano() != 40 {
		t.Errorf("%v", last)
	}

	// Earlier traces, and those of an object that was deleted, may be known to others only.
	b.Add(of("scheduler", step(2, 1, 0, 100, naming("q")...)))
	c.Add(of("node", step(3, 1, 0, 200, naming("q")...)))
	a.Add(of("apiserver", step(3, 2, 1, 150)))
	for earlier, want := range []byte{3, 2} {
		got, err := service.GetTrace(as("ann"), &tracev1.GetTraceRequest{Resource: "pods", Namespace: "n", Name: "q", Earlier: int32(earlier)})
		if err != nil || got.GetTraceId() != fmt.Sprintf("%x", traceID(want)) {
			t.Errorf("%d earlier: %v, %v; want trace %d", earlier, got, err, want)
		}
	}
}

// silent is an apiserver that does not answer.
type silent struct {
	tracev1.UnimplementedPeerServiceServer
}

func (silent) GetSpans(_ *tracev1.GetSpansRequest, s tracev1.PeerService_GetSpansServer) error {
	<-s.Context().Done()
	return s.Context().Err()
}

func (silent) ListTraces(ctx context.Context, _ *tracev1.ListTracesRequest) (*tracev1.ListTracesResponse, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// What is missing is said: an apiserver that does not answer, and spans beyond the bound.
func TestIncompleteTraceSaysSo(t *testing.T) {
	get := &tracev1.GetTraceRequest{TraceId: fmt.Sprintf("%x", traceID(1))}
	a, service := apiserver(t, Config{}, silent{})
	a.Add(of("apiserver", step(1, 1, 0, 0)))
	got, err := service.GetTrace(as("ann"), get)
	if err != nil || spansIn(t, got) != "apiserver 1" || !got.GetDropped() {
		t.Errorf("a silent peer: %v, %v", got, err)
	}

	b := New(Config{})
	a, service = apiserver(t, Config{TraceSpans: 3}, NewPeer(b, everyone))
	a.Add(of("apiserver", step(1, 1, 0, 0)))
	for i := byte(2); i < 10; i++ {
		b.Add(of("node", step(1, i, 1, uint64(i))))
	}
	got, err = service.GetTrace(as("ann"), get)
	if err != nil || len(got.GetSpans()) != 3 || !got.GetDropped() {
		t.Errorf("too many spans: %v, %v", got, err)
	}
}

// Only apiservers may ask.
func TestPeerRefusesOthers(t *testing.T) {
	s := New(Config{})
	s.Add(of("apiserver", step(1, 1, 0, 0)))
	client := tracev1.NewPeerServiceClient(reach(t, NewPeer(s, func(context.Context) error {
		return status.Error(codes.PermissionDenied, "not an apiserver")
	})))
	stream, err := client.GetSpans(t.Context(), &tracev1.GetSpansRequest{TraceId: traceID(1)})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("GetSpans: %v", err)
	}
	if _, err := client.ListTraces(t.Context(), &tracev1.ListTracesRequest{Resource: "pods", Name: "p"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("ListTraces: %v", err)
	}
	stream, err = tracev1.NewPeerServiceClient(reach(t, NewPeer(s, everyone))).GetSpans(t.Context(), &tracev1.GetSpansRequest{TraceId: []byte("short")})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a short trace id: %v", err)
	}
}
