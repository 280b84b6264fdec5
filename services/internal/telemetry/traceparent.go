package telemetry

import (
	"context"
	"encoding/hex"

	"go.opentelemetry.io/otel/trace"
)

// The layout of a traceparent of version 00 (W3C Trace Context, level 1):
// version, trace id, parent id and flags in lower-case hexadecimal digits.
const (
	traceparentLen = 55
	traceAt        = 3
	spanAt         = 36
	flagsAt        = 53
)

// ContextWithTraceparent returns a context in which tp is the parent of the next span, or ctx
// itself if tp is malformed or empty.
func ContextWithTraceparent(ctx context.Context, tp string) context.Context {
	sc, ok := ParseTraceparent(tp)
	if !ok {
		return ctx
	}
	return trace.ContextWithRemoteSpanContext(ctx, sc)
}

// ParseTraceparent parses a W3C traceparent, and returns false if it is malformed. Fields
// that a later version may have added are ignored, as the specification requires.
func ParseTraceparent(tp string) (trace.SpanContext, bool) {
	if len(tp) < traceparentLen || tp[2] != '-' || tp[spanAt-1] != '-' || tp[flagsAt-1] != '-' {
		return trace.SpanContext{}, false
	}
	if len(tp) > traceparentLen && (tp[:2] == "00" || tp[traceparentLen] != '-') {
		return trace.SpanContext{}, false
	}
	var version, flags [1]byte
	var cfg trace.SpanContextConfig
	if !unhex(version[:], tp[:2]) || version[0] == 0xff ||
		!unhex(cfg.TraceID[:], tp[traceAt:spanAt-1]) ||
		!unhex(cfg.SpanID[:], tp[spanAt:flagsAt-1]) ||
		!unhex(flags[:], tp[flagsAt:traceparentLen]) {
		return trace.SpanContext{}, false
	}
	cfg.TraceFlags = trace.TraceFlags(flags[0]) & trace.FlagsSampled
	cfg.Remote = true
	sc := trace.NewSpanContext(cfg)
	return sc, sc.IsValid()
}

// Traceparent returns the trace context of ctx as a W3C traceparent, or "" if its span is
// not recorded.
func Traceparent(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() || !sc.IsSampled() {
		return ""
	}
	traceID, spanID := sc.TraceID(), sc.SpanID()
	var b [traceparentLen]byte
	copy(b[:], "00-")
	hex.Encode(b[traceAt:], traceID[:])
	b[spanAt-1] = '-'
	hex.Encode(b[spanAt:], spanID[:])
	copy(b[flagsAt-1:], "-01")
	return string(b[:])
}

// Link returns a span link to the trace context tp, for work that several writes caused. ok
// is false if tp is malformed or not recorded.
func Link(tp string) (link trace.Link, ok bool) {
	sc, ok := ParseTraceparent(tp)
	return trace.Link{SpanContext: sc}, ok && sc.IsSampled()
}

// unhex decodes lower-case hexadecimal digits. Upper-case ones are refused, as the
// specification requires.
func unhex(dst []byte, src string) bool {
	for i := range dst {
		high, ok1 := digit(src[2*i])
		low, ok2 := digit(src[2*i+1])
		if !ok1 || !ok2 {
			return false
		}
		dst[i] = high<<4 | low
	}
	return true
}

func digit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
