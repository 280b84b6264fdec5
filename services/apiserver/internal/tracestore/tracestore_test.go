package tracestore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func traceID(n byte) []byte { return append(make([]byte, 15), n) }
func spanID(n byte) []byte  { return append(make([]byte, 7), n) }

func str(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

// step returns a span of trace t. A parent of 0 means none.
func step(t, id, parent byte, start uint64, attributes ...*commonpb.KeyValue) *tracepb.Span {
	s := &tracepb.Span{TraceId: traceID(t), SpanId: spanID(id), Name: fmt.Sprintf("step-%d", id), StartTimeUnixNano: start, EndTimeUnixNano: start + 10, Attributes: attributes}
	if parent != 0 {
		s.ParentSpanId = spanID(parent)
	}
	return s
}

func of(service string, spans ...*tracepb.Span) []*tracepb.ResourceSpans {
	return []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{str("service.name", service)}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}},
	}}
}

// names returns the ids of the spans of trace t, in the order in which they are returned to
// clients.
func names(s *Store, t byte) string {
	spans, dropped, _ := s.trace(TraceID(traceID(t)))
	var list []string
	for _, sp := range arrange(spans, dropped) {
		list = append(list, strings.TrimPrefix(sp.GetName(), "step-"))
	}
	return strings.Join(list, " ")
}

func TestOrder(t *testing.T) {
	for name, tt := range map[string]struct {
		spans []*tracepb.Span
		want  string
	}{
		"by start":                   {[]*tracepb.Span{step(1, 1, 0, 0), step(1, 3, 1, 20), step(1, 2, 1, 10)}, "1 2 3"},
		"children arrive first":      {[]*tracepb.Span{step(1, 3, 2, 20), step(1, 2, 1, 10), step(1, 1, 0, 0)}, "1 2 3"},
		"a clock that is behind":     {[]*tracepb.Span{step(1, 1, 0, 100), step(1, 2, 1, 50), step(1, 3, 2, 40), step(1, 4, 1, 110)}, "1 2 3 4"},
		"across branches":            {[]*tracepb.Span{step(1, 1, 0, 0), step(1, 2, 1, 10), step(1, 3, 2, 30), step(1, 4, 1, 20)}, "1 2 4 3"},
		"parents of each other":      {[]*tracepb.Span{step(1, 1, 2, 0), step(1, 2, 1, 10)}, "1 2"},
		"its own parent":             {[]*tracepb.Span{step(1, 1, 1, 0)}, "1"},
		"exported twice":             {[]*tracepb.Span{step(1, 1, 0, 0), step(1, 1, 0, 0)}, "1"},
		"two roots":                  {[]*tracepb.Span{step(1, 2, 0, 5), step(1, 1, 0, 0)}, "1 2"},
		"a parent that is elsewhere": {[]*tracepb.Span{step(1, 2, 9, 5)}, "2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Config{})
			s.Add(of("x", tt.spans...))
			if got := names(s, 1); got != tt.want {
				t.Fatalf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestSpanOnTheWire(t *testing.T) {
	s := New(Config{})
	sp := step(1, 2, 9, 5, str("k", "v"),
		&commonpb.KeyValue{Key: "n", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: 7}}},
		&commonpb.KeyValue{Key: "list", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: []*commonpb.AnyValue{
			{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}, {Value: &commonpb.AnyValue_DoubleValue{DoubleValue: 1.5}},
		}}}}},
		str("long", strings.Repeat("é", maxText)))
	sp.Flags = remoteFlag
	sp.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: "no such image"}
	sp.Links = []*tracepb.Span_Link{{SpanId: spanID(7)}, {SpanId: []byte("short")}}
	s.Add(of("node", sp))
	spans, dropped, _ := s.trace(TraceID(traceID(1)))
	got := arrange(spans, dropped)[0]
	if got.GetService() != "node" || got.GetSpanId() != "0000000000000002" || got.GetParentSpanId() != "0000000000000009" || !got.GetRemoteParent() ||
		got.GetStartUnixNano() != 5 || got.GetEndUnixNano() != 15 || got.GetError() != "no such image" ||
		!slices.Equal(got.GetLinks(), []string{"0000000000000007"}) ||
		got.GetAttributes()["k"] != "v" || got.GetAttributes()["n"] != "7" || got.GetAttributes()["list"] != "true,1.5" {
		t.Fatalf("%v", got)
	}
	if long := got.GetAttributes()["long"]; len(long) > maxText || !utf8.ValidString(long) {
		t.Errorf("long text: %d bytes, valid UTF-8: %v", len(long), utf8.ValidString(long))
	}
	if arrange(spans, true)[0].GetRemoteParent() {
		t.Error("a parent is reported as remote although spans were dropped")
	}
}

func TestBounds(t *testing.T) {
	now := time.Unix(1000, 0)
	clock := func() time.Time { return now }
	t.Run("spans", func(t *testing.T) {
		s := New(Config{Spans: 10, Now: clock})
		for i := range byte(20) {
			s.Add(of("x", step(i+1, 1, 0, 0), step(i+1, 2, 1, 0)))
		}
		if s.Len() != 10 || names(s, 20) != "1 2" || names(s, 16) != "1 2" || names(s, 15) != "" {
			t.Fatalf("%d spans", s.Len())
		}
	})
	t.Run("the longest idle trace is dropped first", func(t *testing.T) {
		s := New(Config{Spans: 4, Now: clock})
		s.Add(of("x", step(1, 1, 0, 0)))
		s.Add(of("x", step(2, 1, 0, 0)))
		s.Add(of("x", step(1, 2, 1, 0), step(3, 1, 0, 0), step(3, 2, 0, 0)))
		if names(s, 1) != "1 2" || names(s, 2) != "" {
			t.Fatal("the wrong trace was dropped")
		}
	})
	t.Run("bytes", func(t *testing.T) {
		s := New(Config{Bytes: 10_000, Now: clock})
		for i := range byte(200) {
			s.Add(of("x", step(i+1, 1, 0, 0, str("k", strings.Repeat("v", 500)))))
		}
		if s.Bytes() > 10_000 || s.Len() == 0 || names(s, 200) == "" {
			t.Fatalf("%d bytes, %d spans", s.Bytes(), s.Len())
		}
	})
	t.Run("spans of one trace", func(t *testing.T) {
		s := New(Config{TraceSpans: 3, Now: clock})
		for i := range byte(5) {
			s.Add(of("x", step(1, i+1, 0, uint64(i))))
		}
		_, dropped, _ := s.trace(TraceID(traceID(1)))
		if names(s, 1) != "1 2 3" || !dropped {
			t.Fatal(names(s, 1), dropped)
		}
	})
	t.Run("age", func(t *testing.T) {
		s := New(Config{Age: time.Minute, Now: clock})
		s.Add(of("x", step(1, 1, 0, 0, str(keyPod, "p"), str(keyNamespace, "n"))))
		now = now.Add(time.Minute)
		if names(s, 1) != "" || s.Len() != 0 || s.Bytes() != 0 || len(s.objects) != 0 || s.quiet.Len() != 0 {
			t.Fatal("an expired trace was kept")
		}
	})
}

func TestRejectsMalformedSpans(t *testing.T) {
	s := New(Config{})
	short := step(1, 1, 0, 0)
	short.TraceId = []byte("short")
	none := step(1, 1, 0, 0)
	none.SpanId = nil
	if n := s.Add(of("x", short, none, step(1, 1, 0, 0))); n != 2 || s.Len() != 1 {
		t.Fatal(n, s.Len())
	}
	if n := s.Add([]*tracepb.ResourceSpans{nil, {ScopeSpans: []*tracepb.ScopeSpans{nil, {Spans: []*tracepb.Span{nil}}}}}); n != 1 {
		t.Fatal(n)
	}
}

// written is a Lookup that maps namespaced object names to traceparents.
type written map[string]string

func (w written) Traceparent(_ context.Context, o Object) (string, error) {
	if o.Name == "broken" {
		return "", errors.New("store is closed")
	}
	tp, ok := w[o.Resource+"/"+o.Namespace+"/"+o.Name]
	if !ok {
		return "", apierrors.NewNotFound(traceResource, o.Name)
	}
	return tp, nil
}

func (w written) Groups(resource string) []string {
	switch resource {
	case "deployments":
		return []string{"apps"}
	case "events":
		return []string{"", "events.k8s.io"}
	case "pods", "secrets", "namespaces":
		return []string{""}
	}
	return nil
}

// allow is an authorizer that lists what each user may do.
type allow map[string]string

func (a allow) Authorize(_ context.Context, r *request.Attributes) (bool, string, error) {
	what := r.Verb + " " + r.Path + r.Resource.Resource
	return strings.Contains(a[r.User.Name], what), "", nil
}

func parent(t, id byte) string {
	return telemetry.Traceparent(trace.ContextWithSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID(traceID(t)), SpanID: trace.SpanID(spanID(id)), TraceFlags: trace.FlagsSampled,
	})))
}

func as(user string) context.Context {
	return request.WithUser(context.Background(), request.User{Name: user})
}

func TestGetTrace(t *testing.T) {
	s := New(Config{})
	service := NewService(s, written{
		"deployments/n/web":   parent(1, 1),
		"deployments/n/quiet": "",
		"deployments/n/lost":  parent(99, 1),
		"pods/n/p":            parent(98, 1),
	}, allow{"ann": "get deployments get pods", "root": "get /debug/traces", "bob": ""}, nil)
	s.Add(of("apiserver", step(1, 1, 0, 0)))
	s.Add(of("node", step(2, 1, 0, 0, str(keyPod, "p"), str(keyNamespace, "n"))))
	s.Add(of("node", step(3, 1, 0, 9, str(keyPod, "p"), str(keyNamespace, "n"))))
	s.Add(of("apiserver", step(4, 1, 0, 9, str(keyResource, "deployments"), str(keyName, "gone"), str(keyNamespace, "n"))))
	object := func(resource, name string) *tracev1.GetTraceRequest {
		r := &tracev1.GetTraceRequest{Resource: resource, Namespace: "n", Name: name}
		if resource == "deployments" {
			r.Group = "apps"
		}
		return r
	}
	before := func(r *tracev1.GetTraceRequest, n int32) *tracev1.GetTraceRequest {
		r.Earlier = n
		return r
	}
	id := func(n byte) string { return fmt.Sprintf("%x", traceID(n)) }
	tests := []struct {
		name, user string
		r          *tracev1.GetTraceRequest
		code       codes.Code
		want       string // trace id, or part of the error
	}{
		{"by the object's last write", "ann", object("deployments", "web"), codes.OK, id(1)},
		{"last write's spans dropped: the newest that names the object", "ann", object("pods", "p"), codes.OK, id(3)},
		{"of a deleted object", "ann", object("deployments", "gone"), codes.OK, id(4)},
		{"by id", "root", &tracev1.GetTraceRequest{TraceId: id(2)}, codes.OK, id(2)},
		{"by id, not allowed", "ann", &tracev1.GetTraceRequest{TraceId: id(2)}, codes.PermissionDenied, `User "ann" cannot get path "/debug/traces"`},
		{"of an object, not allowed", "bob", object("deployments", "web"), codes.PermissionDenied, `cannot get resource "deployments"`},
		{"untraced", "ann", object("deployments", "quiet"), codes.NotFound, "was not traced"},
		{"no longer in memory", "ann", object("deployments", "lost"), codes.NotFound, id(99)},
		{"no such object", "ann", object("deployments", "never"), codes.NotFound, "never"},
		{"unknown id", "root", &tracev1.GetTraceRequest{TraceId: id(77)}, codes.NotFound, id(77)},
		{"no id", "root", &tracev1.GetTraceRequest{TraceId: "xyz"}, codes.InvalidArgument, "32 hexadecimal digits"},
		{"nothing", "root", &tracev1.GetTraceRequest{}, codes.InvalidArgument, "specify a trace id"},
		{"of the previous write", "ann", before(object("pods", "p"), 1), codes.OK, id(2)},
		{"of an unknown earlier write", "ann", before(object("pods", "p"), 2), codes.NotFound, "no trace of an earlier write"},
		{"of an earlier write, not allowed", "bob", before(object("pods", "p"), 1), codes.PermissionDenied, `cannot get resource "pods"`},
		{"too far back", "ann", before(object("pods", "p"), maxEarlier+1), codes.InvalidArgument, "earlier 1001"},
		{"of a later write", "ann", before(object("pods", "p"), -1), codes.InvalidArgument, "earlier -1"},
		{"earlier than an id", "root", before(&tracev1.GetTraceRequest{TraceId: id(2)}, 1), codes.InvalidArgument, "earlier 1"},
		{"failing store", "ann", object("deployments", "broken"), codes.Internal, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res, err := service.GetTrace(as(tt.user), tt.r)
			if status.Code(err) != tt.code {
				t.Fatalf("%v, want %s", err, tt.code)
			}
			if err != nil && !strings.Contains(err.Error(), tt.want) || err == nil && (res.GetTraceId() != tt.want || len(res.GetSpans()) == 0) {
				t.Fatalf("%v %v, want %s", res, err, tt.want)
			}
		})
	}
}

// serve runs a gRPC server until the test ends, and returns its address.
func serve(t *testing.T, register func(*grpc.Server), options ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	register(server)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return l.Addr().String()
}

// sink is an OTLP collector.
type sink struct {
	collectorpb.UnimplementedTraceServiceServer
	spans   atomic.Int64
	unhappy atomic.Int64
}

func (s *sink) Export(_ context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	if s.unhappy.Add(-1) >= 0 {
		return nil, status.Error(codes.Unavailable, "busy")
	}
	for _, rs := range r.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			s.spans.Add(int64(len(ss.GetSpans())))
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func TestExportKeepsAndForwards(t *testing.T) {
	s, out := New(Config{}), &sink{}
	out.unhappy.Store(1) // the first attempt fails and is retried
	address := serve(t, func(g *grpc.Server) { collectorpb.RegisterTraceServiceServer(g, out) })
	forward, err := NewForward(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- forward.Run(ctx) }()

	service := NewService(s, written{}, allow{"node": "post /debug/traces"}, forward)
	server := serve(t, func(g *grpc.Server) { service.Register(g) },
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			return next(request.WithUser(ctx, request.User{Name: "node"}), req)
		}))
	// Telemetry of a service arrives over OTLP.
	conn, err := grpc.NewClient(server, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tel, err := telemetry.Start(ctx, telemetry.Config{Service: "node", Instance: "node-1", Conn: conn})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.Provider().Tracer("t").Start(telemetry.WithRoot(ctx), "start")
	span.End()
	if err := tel.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	spans, _, ok := s.trace(TraceID(span.SpanContext().TraceID()))
	if !ok || len(spans) != 1 || spans[0].service != "node" || spans[0].name != "start" {
		t.Fatalf("%v", spans)
	}
	deadline := time.Now().Add(60 * time.Second)
	for out.spans.Load() != 1 {
		if time.Now().After(deadline) {
			t.Fatal("not forwarded")
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if _, err := (collector{Service: service}).Export(as("stranger"), &collectorpb.ExportTraceServiceRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("unauthorized export: %v", err)
	}
}

func TestForwardNeverWaits(t *testing.T) {
	forward, err := NewForward("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	for range forwardQueue + 10 { // Run has not been called
		forward.Send(of("x", step(1, 1, 0, 0)))
	}
	if forward.Dropped() != 10 {
		t.Fatalf("%d dropped", forward.Dropped())
	}
	forward.conn.Close()
	var none *Forward
	none.Send(of("x", step(1, 1, 0, 0)))
	if err := none.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestExporterNeedsNoConnection(t *testing.T) {
	s := New(Config{})
	tel, err := telemetry.Start(context.Background(), telemetry.Config{Service: "apiserver", Exporter: Exporter(s, nil)})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.Provider().Tracer("t").Start(telemetry.WithRoot(context.Background()), "write")
	span.End()
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if spans, _, ok := s.trace(TraceID(span.SpanContext().TraceID())); !ok || spans[0].service != "apiserver" {
		t.Fatal(spans, ok)
	}
}

func BenchmarkAdd(b *testing.B) {
	s := New(Config{})
	var n uint64
	b.ReportAllocs()
	for b.Loop() {
		n++
		sp := step(byte(n), byte(n>>8), 0, n, str("a", "b"), str("c", "d"))
		s.Add(of("x", sp))
	}
}
