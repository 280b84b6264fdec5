package telemetry

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceparent(t *testing.T) {
	tests := []struct {
		name, in, want string
	}{
		{"recorded", sampled, sampled},
		{"not recorded", sampled[:53] + "00", ""},
		{"unknown flags", sampled[:53] + "03", sampled},
		{"later version with more fields", "01" + sampled[2:] + "-more", sampled},
		{"version 00 with more fields", sampled + "-more", ""},
		{"version ff", "ff" + sampled[2:], ""},
		{"upper case", strings.ToUpper(sampled), ""},
		{"zero trace", "00-00000000000000000000000000000000-b7ad6b7169203331-01", ""},
		{"zero span", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", ""},
		{"short", sampled[:54], ""},
		{"wrong dash", strings.Replace(sampled, "-b", "_b", 1), ""},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Traceparent(ContextWithTraceparent(context.Background(), tt.in)); got != tt.want {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzParseTraceparent(f *testing.F) {
	f.Add(sampled)
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x")
	f.Fuzz(func(t *testing.T, s string) {
		sc, ok := ParseTraceparent(s)
		if ok != sc.IsValid() {
			t.Fatal("ok without a valid context")
		}
		if ok && !strings.Contains(s, sc.TraceID().String()) {
			t.Fatal("trace id was not in the input")
		}
	})
}

func TestSampling(t *testing.T) {
	background := context.Background()
	tests := []struct {
		name string
		ctx  context.Context
		want bool
	}{
		{"no parent", background, false},
		{"explicit root", WithRoot(background), true},
		{"recorded parent", ContextWithTraceparent(background, sampled), true},
		{"unrecorded parent", ContextWithTraceparent(background, sampled[:53]+"00"), false},
		{"unrecorded parent, root asked for", WithRoot(ContextWithTraceparent(background, sampled[:53]+"00")), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tel, err := Start(background, Config{Service: "svc", Instance: "svc-0", Exporter: tracetest.NewInMemoryExporter()})
			if err != nil {
				t.Fatal(err)
			}
			defer tel.Shutdown(background)
			_, span := tel.Provider().Tracer("t").Start(tt.ctx, "step")
			span.End()
			if got := span.SpanContext().IsSampled(); got != tt.want {
				t.Fatalf("recorded: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestRootsAreRateLimited(t *testing.T) {
	now := time.Unix(1000, 0)
	s := newSampler(10)
	s.now, s.last = func() time.Time { return now }, now
	count := func() (n int) {
		for range 100 {
			if s.ShouldSample(sdktrace.SamplingParameters{ParentContext: WithRoot(context.Background())}).Decision == sdktrace.RecordAndSample {
				n++
			}
		}
		return n
	}
	if got := count(); got != 10 {
		t.Fatalf("at once: %d roots, want 10", got)
	}
	now = now.Add(500 * time.Millisecond)
	if got := count(); got != 5 {
		t.Fatalf("after half a second: %d roots, want 5", got)
	}
}

func TestExportCarriesResource(t *testing.T) {
	exporter := &keep{}
	tel, err := Start(context.Background(), Config{Service: "scheduler", Instance: "scheduler-1", Exporter: exporter})
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.Provider().Tracer("t").Start(WithRoot(context.Background()), "step")
	span.End()
	if err := tel.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(exporter.spans) != 1 {
		t.Fatalf("%d spans exported, want 1", len(exporter.spans))
	}
	set := exporter.spans[0].Resource().Set()
	for key, want := range map[attribute.Key]string{"service.name": "scheduler", "service.instance.id": "scheduler-1"} {
		if got, _ := set.Value(key); got.AsString() != want {
			t.Errorf("%s = %q, want %q", key, got.AsString(), want)
		}
	}
}

type keep struct{ spans []sdktrace.ReadOnlySpan }

func (k *keep) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	k.spans = append(k.spans, spans...)
	return nil
}
func (*keep) Shutdown(context.Context) error { return nil }

func TestLogHandlerAddsTrace(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(NewLogHandler(slog.NewTextHandler(&out, nil)))
	log = log.With("a", 1)
	log.InfoContext(ContextWithTraceparent(context.Background(), sampled), "with")
	log.InfoContext(t.Context(), "without")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if !strings.Contains(lines[0], "trace_id=0af7651916cd43dd8448eb211c80319c span_id=b7ad6b7169203331") {
		t.Error(lines[0])
	}
	if strings.Contains(lines[1], "trace_id") {
		t.Error(lines[1])
	}
}

func TestLink(t *testing.T) {
	if l, ok := Link(sampled); !ok || l.SpanContext.SpanID().String() != "b7ad6b7169203331" {
		t.Fatal(l, ok)
	}
	if _, ok := Link("x"); ok {
		t.Fatal("a malformed traceparent made a link")
	}
}
