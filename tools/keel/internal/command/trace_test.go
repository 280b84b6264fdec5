package command

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

// settle waits for a trace that arrives in parts, and reports that a trace stays incomplete.
func TestTracesSettle(t *testing.T) {
	root := &tracev1.Span{SpanId: "a"}
	child := &tracev1.Span{SpanId: "b", ParentSpanId: "a"}
	orphan := &tracev1.Span{SpanId: "c", ParentSpanId: "lost"}
	none := status.Error(codes.NotFound, "not traced yet")
	for name, c := range map[string]struct {
		// at maps times to the trace that is available from then on.
		at      map[time.Duration]*tracev1.GetTraceResponse
		spans   int
		missing string
		code    codes.Code
		took    time.Duration // at most
	}{
		"complete":                 {at: map[time.Duration]*tracev1.GetTraceResponse{0: {Spans: []*tracev1.Span{root, child}}}, spans: 2, took: 2 * time.Second},
		"comes late":               {at: map[time.Duration]*tracev1.GetTraceResponse{time.Second: {Spans: []*tracev1.Span{root}}, 2 * time.Second: {Spans: []*tracev1.Span{root, child}}}, spans: 2, took: 4 * time.Second},
		"parent comes after child": {at: map[time.Duration]*tracev1.GetTraceResponse{0: {Spans: []*tracev1.Span{child}}, 2 * time.Second: {Spans: []*tracev1.Span{root, child}}}, spans: 2, took: 4 * time.Second},
		"parent never comes":       {at: map[time.Duration]*tracev1.GetTraceResponse{0: {Spans: []*tracev1.Span{root, orphan}}}, spans: 2, missing: "1 spans name a parent", took: 5 * time.Second},
		"dropped":                  {at: map[time.Duration]*tracev1.GetTraceResponse{0: {Spans: []*tracev1.Span{orphan}, Dropped: true}}, spans: 1, missing: "no longer in memory"},
		"never comes":              {code: codes.NotFound, took: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				got, missing, err := settle(t.Context(), 5*time.Second, func(context.Context) (*tracev1.GetTraceResponse, error) {
					var newest time.Duration = -1
					for at := range c.at {
						if at <= time.Since(began) {
							newest = max(newest, at)
						}
					}
					if newest < 0 {
						return nil, none
					}
					return c.at[newest], nil
				})
				if status.Code(err) != c.code || len(got.GetSpans()) != c.spans || (missing == "") != (c.missing == "") || !strings.Contains(missing, c.missing) {
					t.Errorf("%d spans, missing %q, %v", len(got.GetSpans()), missing, err)
				}
				if took := time.Since(began); took > c.took {
					t.Errorf("it took %s, want at most %s", took, c.took)
				}
			})
		})
	}
	_, _, err := settle(t.Context(), time.Minute, func(context.Context) (*tracev1.GetTraceResponse, error) {
		return nil, status.Error(codes.PermissionDenied, "no")
	})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("settle waited after a rejection: %v", err)
	}
}

func TestEarlierTraces(t *testing.T) {
	for _, c := range []struct{ want, there, got int }{{0, 5, 0}, {3, 5, 3}, {3, 1, 1}, {3, 0, 0}} {
		got, err := earlierTraces(c.want, func(n int32) (*tracev1.GetTraceResponse, error) {
			if int(n) > c.there {
				return nil, status.Error(codes.NotFound, "none")
			}
			return &tracev1.GetTraceResponse{TraceId: string('0' + n)}, nil
		})
		if err != nil || len(got) != c.got || c.got > 0 && got[len(got)-1].TraceId != "1" {
			t.Errorf("%d of %d: %v, %v", c.want, c.there, got, err)
		}
	}
	if _, err := earlierTraces(1, func(int32) (*tracev1.GetTraceResponse, error) { return nil, status.Error(codes.PermissionDenied, "no") }); err == nil {
		t.Error("a rejection was mistaken for the last trace")
	}
}
