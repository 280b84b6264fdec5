package waterfall

import (
	"bytes"
	"flag"
	"os"
	"testing"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

var update = flag.Bool("update", false, "rewrite testdata")

func TestDraw(t *testing.T) {
	trace := &tracev1.GetTraceResponse{
		TraceId: "4bf92f3577b34da6a3ce929d0e0e4736",
		Spans: []*tracev1.Span{
			{SpanId: "a", ParentSpanId: "client", RemoteParent: true, Service: "apiserver", Name: "create deployments.apps", StartUnixNano: 0, EndUnixNano: 5e6},
			{SpanId: "b", ParentSpanId: "a", Service: "controller-manager", Name: "reconcile deployment", StartUnixNano: 6e6, EndUnixNano: 20e6, Links: []string{"z"}},
			{SpanId: "d", ParentSpanId: "c", Service: "node", Name: "start container", StartUnixNano: 30e6, EndUnixNano: 1200e6, Error: "no such image"},
			{SpanId: "c", ParentSpanId: "b", Service: "scheduler", Name: "schedule pod", StartUnixNano: 21e6, EndUnixNano: 22e6},
			{SpanId: "e", ParentSpanId: "lost", Service: "node", Name: "a span whose parent is gone and whose name is far too long for its column", StartUnixNano: 40e6, EndUnixNano: 40e6 + 900},
		},
	}
	var out bytes.Buffer
	if err := Draw(&out, trace, 100); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/waterfall.txt"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("got:\n%s\nwant:\n%s", out.Bytes(), want)
	}
}
