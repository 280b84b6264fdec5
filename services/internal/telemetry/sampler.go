package telemetry

import (
	"context"
	"sync"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

type rootKey struct{}

// WithRoot returns a context whose next span begins a recorded trace if it has no recorded
// parent. Servers use it for writes; reads and resyncs do not begin a trace.
func WithRoot(ctx context.Context) context.Context {
	if trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx
	}
	return context.WithValue(ctx, rootKey{}, true)
}

// sampler records spans whose parent is recorded, and explicit roots up to a rate.
type sampler struct {
	mu      sync.Mutex
	rate    float64 // roots per second; also the burst
	allowed float64
	last    time.Time
	now     func() time.Time
}

func newSampler(rootsPerSecond int) *sampler {
	return &sampler{rate: float64(rootsPerSecond), allowed: float64(rootsPerSecond), last: time.Now(), now: time.Now}
}

// ShouldSample implements sdktrace.Sampler.
func (s *sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	result := sdktrace.SamplingResult{Decision: sdktrace.Drop, Tracestate: parent.TraceState()}
	switch {
	case parent.IsValid():
		// A span below an unrecorded one is not recorded: its trace would have no root.
		if parent.IsSampled() {
			result.Decision = sdktrace.RecordAndSample
		}
	case p.ParentContext.Value(rootKey{}) != nil && s.allow():
		result.Decision = sdktrace.RecordAndSample
	}
	return result
}

func (s *sampler) allow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.allowed = min(s.rate, s.allowed+now.Sub(s.last).Seconds()*s.rate)
	s.last = now
	if s.allowed < 1 {
		return false
	}
	s.allowed--
	return true
}

// Description implements sdktrace.Sampler.
func (s *sampler) Description() string { return "parent or explicit root" }
