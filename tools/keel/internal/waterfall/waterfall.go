// Package waterfall draws a trace as text: one line per span, indented below its parent, with a
// bar at its position in time. It must never hide a span.
package waterfall

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

// Width returns the width of the terminal from COLUMNS, or 120.
func Width() int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n >= 60 {
		return n
	}
	return 120
}

// node is a span with its children.
type node struct {
	span     *tracev1.Span
	children []*node
}

// Draw writes a trace to w, in lines of about width characters.
func Draw(w io.Writer, t *tracev1.GetTraceResponse, width int) error {
	if len(t.Spans) == 0 {
		_, err := fmt.Fprintf(w, "trace %s: no spans in memory\n", t.TraceId)
		return err
	}
	roots := tree(t.Spans)
	retried := retried(roots)
	begin, end := t.Spans[0].StartUnixNano, t.Spans[0].EndUnixNano
	services := map[string]bool{}
	for _, s := range t.GetSpans() {
		begin, end = min(begin, s.StartUnixNano), max(end, s.EndUnixNano)
		services[Plain(s.Service)] = true
	}
	missing := Missing(t)
	names := make([]string, 0, len(services))
	for s := range services {
		names = append(names, s)
	}
	slices.Sort(names)
	fmt.Fprintf(w, "trace %.64s  %s  %d spans  %s\n", Plain(t.TraceId), length(end-begin), len(t.Spans), strings.Join(names, " "))
	if missing > 0 || t.Dropped {
		fmt.Fprintf(w, "(%d spans name a parent that is not in memory)\n", missing)
	}
	label := min(64, width/2)
	var draw func(n *node, depth int)
	draw = func(n *node, depth int) {
		s := n.span
		text := strings.Repeat("  ", depth) + Plain(s.Service) + ": " + method(Plain(s.Name))
		fmt.Fprintf(w, "%s %8s |%s|%s\n", fit(text, label), length(s.EndUnixNano-s.StartUnixNano),
			bar(s, begin, end, width-label-13), note(s, retried[s]))
		for _, c := range n.children {
			draw(c, depth+1)
		}
	}
	for _, r := range roots {
		draw(r, 0)
	}
	return nil
}

// Missing returns the number of spans whose parent should be in the trace but is not.
func Missing(t *tracev1.GetTraceResponse) int {
	have := make(map[string]bool, len(t.GetSpans()))
	for _, s := range t.GetSpans() {
		have[s.SpanId] = true
	}
	n := 0
	for _, s := range t.GetSpans() {
		if s.ParentSpanId != "" && !s.RemoteParent && !have[s.ParentSpanId] {
			n++
		}
	}
	return n
}

// Plain escapes everything in text that affects a terminal: control characters, characters that
// change the writing direction, and invalid UTF-8.
func Plain(text string) string {
	plain := func(r rune) bool { return unicode.IsPrint(r) && r != utf8.RuneError }
	if !strings.ContainsFunc(text, func(r rune) bool { return !plain(r) }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if plain(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// rpcName matches the full name of an RPC: package.Service/Method.
var rpcName = regexp.MustCompile(`^/?(?:[a-z][a-z0-9_]*\.)+([A-Z]\w*/\w+)$`)

// method removes the package from an RPC's name, because the service and the method identify
// it.
func method(name string) string {
	if m := rpcName.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return name
}

// isConflict reports whether a write failed because it was based on an old version of the
// object. The texts are Kubernetes'.
func isConflict(s *tracev1.Span) bool {
	return strings.Contains(s.Error, "the object has been modified") || strings.Contains(s.Error, "Operation cannot be fulfilled")
}

// retried finds the conflicts that are not failures: the same operation was repeated later, by
// the same parent or in another reconcile, and succeeded.
func retried(roots []*node) map[*tracev1.Span]bool {
	out := map[*tracev1.Span]bool{}
	type same struct{ service, name string }
	var all []*node
	var collect func([]*node)
	collect = func(list []*node) {
		for _, n := range list {
			all = append(all, n)
			collect(n.children)
		}
	}
	collect(roots)
	succeeded := map[same]int64{} // latest start of a success, by operation
	for _, n := range all {
		if key := (same{n.span.Service, n.span.Name}); n.span.Error == "" {
			succeeded[key] = max(succeeded[key], n.span.StartUnixNano)
		}
	}
	for _, n := range all {
		if isConflict(n.span) && succeeded[same{n.span.Service, n.span.Name}] >= n.span.EndUnixNano {
			out[n.span] = true
		}
	}
	return out
}

// tree arranges spans below their parents. A span whose parent is missing is a root.
func tree(spans []*tracev1.Span) []*node {
	byID := make(map[string]*node, len(spans))
	for _, s := range spans {
		byID[s.SpanId] = &node{span: s}
	}
	var roots []*node
	for _, s := range spans {
		n := byID[s.SpanId]
		if p := byID[s.ParentSpanId]; p != nil && p != n {
			p.children = append(p.children, n)
		} else {
			roots = append(roots, n)
		}
	}
	byStart := func(a, b *node) int { return int(a.span.StartUnixNano/1e3 - b.span.StartUnixNano/1e3) }
	for _, n := range byID {
		slices.SortStableFunc(n.children, byStart)
	}
	slices.SortStableFunc(roots, byStart)
	return roots
}

// bar draws a span's bar. A bar has at least one character.
func bar(s *tracev1.Span, begin, end int64, width int) string {
	width = max(width, 10)
	total := max(end-begin, 1)
	from := int((s.StartUnixNano - begin) * int64(width) / total)
	to := int((s.EndUnixNano - begin) * int64(width) / total)
	from = min(from, width-1)
	to = min(max(to, from+1), width)
	return strings.Repeat(" ", from) + strings.Repeat("█", to-from) + strings.Repeat(" ", width-to)
}

// note returns what is written behind a span's bar: its error, or the number of its links.
func note(s *tracev1.Span, retried bool) string {
	switch {
	case s.Error != "" && retried:
		return " conflict, tried again"
	case s.Error != "":
		return " ! " + Plain(s.Error)
	}
	if len(s.Links) > 0 {
		return fmt.Sprintf(" +%d linked", len(s.Links))
	}
	return ""
}

// fit pads or shortens text to width characters.
func fit(text string, width int) string {
	n := utf8.RuneCountInString(text)
	if n <= width {
		return text + strings.Repeat(" ", width-n)
	}
	return string([]rune(text)[:width-1]) + "…"
}

// length formats a duration in nanoseconds.
func length(ns int64) string {
	d := time.Duration(ns)
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.1fms", float64(d)/1e6)
	default:
		return fmt.Sprintf("%dµs", d.Microseconds())
	}
}
