package waterfall

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

var update = flag.Bool("update", false, "rewrite testdata")

// The text of a span cannot contain control sequences for the terminal.
func TestSpansDoNotSteerTheTerminal(t *testing.T) {
	evil := "\x1b]0;title\x07\x1b[2J\r\n\u202eback\u009b1m\xff"
	trace := &tracev1.GetTraceResponse{TraceId: evil, Spans: []*tracev1.Span{
		{SpanId: "a", Service: evil, Name: evil, Error: evil, EndUnixNano: 5},
	}}
	var out bytes.Buffer
	if err := Draw(&out, trace, 100); err != nil {
		t.Fatal(err)
	}
	for _, r := range out.String() {
		if r != '\n' && (!unicode.IsPrint(r) || r == utf8.RuneError) {
			t.Errorf("%q is in %q", r, out.String())
		}
	}
	if lines := strings.Count(out.String(), "\n"); lines != 2 {
		t.Errorf("%d lines, want 2: %q", lines, out.String())
	}
	if got := Plain("größe ✓"); got != "größe ✓" {
		t.Errorf("plain text became %q", got)
	}
}

func TestMethods(t *testing.T) {
	for name, want := range map[string]string{
		"keelson.resource.v1.ResourceService/Create": "ResourceService/Create",
		"/runtime.v1.RuntimeService/RunPodSandbox":   "RuntimeService/RunPodSandbox",
		"create pods/binding":                        "create pods/binding",
		"reconcile deployment":                       "reconcile deployment",
	} {
		if got := method(name); got != want {
			t.Errorf("%s is shown as %s, want %s", name, got, want)
		}
	}
}

// A conflict is not an error if the same operation succeeded later. A conflict that was the
// last attempt is.
func TestRetriedConflicts(t *testing.T) {
	const conflict = `Operation cannot be fulfilled on pods "a": the object has been modified`
	trace := &tracev1.GetTraceResponse{TraceId: "t", Spans: []*tracev1.Span{
		{SpanId: "a", Service: "s", Name: "update pods", Error: conflict, EndUnixNano: 5},
		{SpanId: "b", Service: "s", Name: "update pods", StartUnixNano: 6, EndUnixNano: 8},
		{SpanId: "c", Service: "s", Name: "update nodes", StartUnixNano: 6, EndUnixNano: 8},
		{SpanId: "d", Service: "s", Name: "update nodes", Error: conflict, StartUnixNano: 9, EndUnixNano: 10},
		{SpanId: "e", Service: "s", Name: "update jobs", Error: "refused", StartUnixNano: 9, EndUnixNano: 10},
		{SpanId: "f", Service: "s", Name: "update jobs", StartUnixNano: 11, EndUnixNano: 12},
	}}
	var out bytes.Buffer
	if err := Draw(&out, trace, 100); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), " conflict, tried again\n"); n != 1 {
		t.Errorf("%d conflicts tried again, want 1:\n%s", n, out.String())
	}
	if n := strings.Count(out.String(), " ! "); n != 2 {
		t.Errorf("%d errors, want 2:\n%s", n, out.String())
	}
}

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
