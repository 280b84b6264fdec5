// Package tracestore keeps the recent spans of all services in memory, so that a cluster can
// explain what happened to an object without other software.
//
// The number, size and age of spans are bounded; the trace that has been idle longest is
// dropped first. The store must never block an exporter, nor keep a span that it does not
// account for.
package tracestore

import (
	"bytes"
	"cmp"
	"container/list"
	"slices"
	"strings"
	"sync"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Config bounds a Store. A zero field means the default.
type Config struct {
	// Spans is the largest number of spans; default 50,000.
	Spans int
	// Bytes bounds the approximate memory of all spans; default 32 MiB.
	Bytes int64
	// TraceSpans is the largest number of spans of one trace; default 5,000.
	TraceSpans int
	// Age is how long a trace is kept after its last span; default 1 h.
	Age time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// TraceID and SpanID are the ids of W3C Trace Context.
type (
	TraceID [16]byte
	SpanID  [8]byte
)

// Object identifies an object by its group, resource (the plural), namespace and name.
type Object struct{ Group, Resource, Namespace, Name string }

// Store keeps spans. It is safe for concurrent use.
type Store struct {
	cfg    Config
	mu     sync.Mutex
	traces map[TraceID]*list.Element // of *traceOf
	quiet  *list.List                // in order of last arrival, the longest idle first
	// objects maps an object to the newest trace that names it. The key has no group, because
	// spans do not contain it.
	objects map[Object]TraceID
	spans   int
	bytes   int64
}

// traceOf is a trace.
type traceOf struct {
	id      TraceID
	spans   []*span
	known   map[SpanID]struct{}
	objects []Object
	bytes   int64
	last    time.Time
	dropped bool
}

// span is a stored span.
type span struct {
	id, parent SpanID
	// remote reports whether the parent is a span of another process.
	remote     bool
	service    string
	name       string
	start, end uint64
	attributes []attribute
	err        string
	links      []SpanID
}

type attribute struct{ key, value string }

// New returns an empty store.
func New(cfg Config) *Store {
	def(&cfg.Spans, 50_000)
	def(&cfg.Bytes, 32<<20)
	def(&cfg.TraceSpans, 5_000)
	def(&cfg.Age, time.Hour)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Store{cfg: cfg, traces: make(map[TraceID]*list.Element), quiet: list.New(), objects: make(map[Object]TraceID)}
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Add stores exported spans and returns the number of malformed ones, which are left out.
func (s *Store) Add(resources []*tracepb.ResourceSpans) (rejected int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	for _, r := range resources {
		service := serviceOf(r.GetResource().GetAttributes())
		for _, scope := range r.GetScopeSpans() {
			for _, p := range scope.GetSpans() {
				if !s.add(service, p, now) {
					rejected++
				}
			}
		}
	}
	s.shrink(now)
	return rejected
}

func (s *Store) add(service string, p *tracepb.Span, now time.Time) bool {
	var id TraceID
	if len(p.GetTraceId()) != len(id) || len(p.GetSpanId()) != len(SpanID{}) {
		return false
	}
	copy(id[:], p.GetTraceId())
	sp := newSpan(service, p)
	element := s.traces[id]
	if element == nil {
		element = s.quiet.PushBack(&traceOf{id: id, known: make(map[SpanID]struct{})})
		s.traces[id] = element
	} else {
		s.quiet.MoveToBack(element)
	}
	t := element.Value.(*traceOf)
	t.last = now
	if _, again := t.known[sp.id]; again {
		return true // a repeated export
	}
	if len(t.spans) >= s.cfg.TraceSpans {
		t.dropped = true
		return true
	}
	size := sp.size()
	t.spans = append(t.spans, sp)
	t.known[sp.id] = struct{}{}
	t.bytes += size
	s.spans++
	s.bytes += size
	if o, ok := sp.object(); ok && s.objects[o] != id {
		s.objects[o] = id
		t.objects = append(t.objects, o)
	}
	return true
}

// shrink drops the longest idle traces until the bounds hold.
func (s *Store) shrink(now time.Time) {
	for {
		front := s.quiet.Front()
		if front == nil {
			return
		}
		t := front.Value.(*traceOf)
		if s.spans <= s.cfg.Spans && s.bytes <= s.cfg.Bytes && now.Sub(t.last) < s.cfg.Age {
			return
		}
		s.quiet.Remove(front)
		delete(s.traces, t.id)
		s.spans -= len(t.spans)
		s.bytes -= t.bytes
		for _, o := range t.objects {
			if s.objects[o] == t.id {
				delete(s.objects, o)
			}
		}
	}
}

// trace returns the spans of a trace. dropped reports whether some are missing, and ok whether
// the trace is known.
func (s *Store) trace(id TraceID) (spans []*span, dropped, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shrink(s.cfg.Now())
	element := s.traces[id]
	if element == nil {
		return nil, false, false
	}
	t := element.Value.(*traceOf)
	return append([]*span(nil), t.spans...), t.dropped, true
}

// newest returns the newest trace with a span that names the object.
func (s *Store) newest(o Object) (TraceID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.Group = ""
	id, ok := s.objects[o]
	return id, ok
}

// begun is a trace and the start of its first span.
type begun struct {
	id    TraceID
	began uint64
}

// named returns the traces with a span that names the object, and the start of the first span of
// each.
func (s *Store) named(o Object) map[TraceID]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shrink(s.cfg.Now())
	o.Group = ""
	found := make(map[TraceID]uint64)
	for e := s.quiet.Front(); e != nil; e = e.Next() {
		t := e.Value.(*traceOf)
		if !slices.Contains(t.objects, o) {
			continue
		}
		first := t.spans[0].start
		for _, sp := range t.spans {
			first = min(first, sp.start)
		}
		found[t.id] = first
	}
	return found
}

// newestFirst returns traces by start time, the newest first.
func newestFirst(traces map[TraceID]uint64) []begun {
	list := make([]begun, 0, len(traces))
	for id, began := range traces {
		list = append(list, begun{id, began})
	}
	slices.SortFunc(list, func(a, b begun) int {
		return cmp.Or(cmp.Compare(b.began, a.began), bytes.Compare(b.id[:], a.id[:]))
	})
	return list
}

// Len returns the number of spans.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spans
}

// Bytes returns the approximate memory of the spans.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// Bounds of one span: bytes of a text, attributes, links. What exceeds them is cut off.
const (
	maxText       = 1024
	maxAttributes = 32
	maxLinks      = 32
)

// remoteFlag is set if the parent is a span of another process (OTLP's SpanFlags: 0x200, which
// is valid if 0x100 is set).
const remoteFlag = uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)

func newSpan(service string, p *tracepb.Span) *span {
	sp := &span{service: service, name: cut(p.GetName()), start: p.GetStartTimeUnixNano(), end: p.GetEndTimeUnixNano()}
	copy(sp.id[:], p.GetSpanId())
	if len(p.GetParentSpanId()) == len(sp.parent) {
		copy(sp.parent[:], p.GetParentSpanId())
	}
	sp.remote = p.GetFlags()&remoteFlag == remoteFlag
	if n := min(len(p.GetAttributes()), maxAttributes); n > 0 {
		sp.attributes = make([]attribute, 0, n)
		for _, a := range p.GetAttributes()[:n] {
			sp.attributes = append(sp.attributes, attribute{cut(a.GetKey()), cut(text(a.GetValue()))})
		}
	}
	if p.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		sp.err = cut(p.GetStatus().GetMessage())
		if sp.err == "" {
			sp.err = "failed"
		}
	}
	for _, l := range p.GetLinks()[:min(len(p.GetLinks()), maxLinks)] {
		var id SpanID
		if len(l.GetSpanId()) == len(id) {
			copy(id[:], l.GetSpanId())
			sp.links = append(sp.links, id)
		}
	}
	return sp
}

// spanOverhead is the approximate memory of a span without its texts: the struct, and its
// entries in the trace and in the set of known ids.
const spanOverhead = 256

func (sp *span) size() int64 {
	n := spanOverhead + len(sp.name) + len(sp.err) + len(sp.links)*len(SpanID{})
	for _, a := range sp.attributes {
		n += 32 + len(a.key) + len(a.value)
	}
	return int64(n)
}

// Attributes in which spans name objects.
const (
	keyNamespace = "k8s.namespace.name"
	keyResource  = "k8s.resource"
	keyName      = "k8s.object.name"
	keyPod       = "k8s.pod.name"
)

// object returns the object that a span names, without its group.
func (sp *span) object() (o Object, ok bool) {
	pod := ""
	for _, a := range sp.attributes {
		switch a.key {
		case keyNamespace:
			o.Namespace = a.value
		case keyResource:
			o.Resource = a.value
		case keyName:
			o.Name = a.value
		case keyPod:
			pod = a.value
		}
	}
	if pod != "" {
		o.Resource, o.Name = "pods", pod
	}
	return o, o.Resource != "" && o.Name != ""
}

func serviceOf(attributes []*commonpb.KeyValue) string {
	for _, a := range attributes {
		if a.GetKey() == "service.name" {
			return cut(a.GetValue().GetStringValue())
		}
	}
	return ""
}

// cut returns s if it is short enough, or a copy of its start, so that the long text is not
// retained.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.Clone(strings.ToValidUTF8(s[:maxText], ""))
}
