package tracestore

import (
	"container/heap"
	"encoding/hex"

	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

// arrange returns spans in the order of their start times, but parents before children even if
// clocks differ. A parent that is not among the spans is outside the cluster (RemoteParent),
// unless spans were dropped: then its location is unknown.
func arrange(spans []*span, dropped bool) []*tracev1.Span {
	known := make(map[SpanID]bool, len(spans))
	for _, sp := range spans {
		known[sp.id] = true
	}
	children := make(map[SpanID][]*span)
	var ready byStart
	for _, sp := range spans {
		if known[sp.parent] && sp.parent != sp.id {
			children[sp.parent] = append(children[sp.parent], sp)
		} else {
			ready = append(ready, sp)
		}
	}
	heap.Init(&ready)
	done := make(map[SpanID]bool, len(spans))
	list := make([]*tracev1.Span, 0, len(spans))
	emit := func() {
		for len(ready) > 0 {
			sp := heap.Pop(&ready).(*span)
			if done[sp.id] {
				continue
			}
			done[sp.id] = true
			list = append(list, sp.wire(!known[sp.parent] && sp.remote && !dropped))
			for _, c := range children[sp.id] {
				heap.Push(&ready, c)
			}
		}
	}
	emit()
	for _, sp := range spans { // spans that are each other's ancestors, which is malformed
		if !done[sp.id] {
			heap.Push(&ready, sp)
			emit()
		}
	}
	return list
}

type byStart []*span

func (b byStart) Len() int           { return len(b) }
func (b byStart) Less(i, j int) bool { return b[i].start < b[j].start }
func (b byStart) Swap(i, j int)      { b[i], b[j] = b[j], b[i] }
func (b *byStart) Push(x any)        { *b = append(*b, x.(*span)) }
func (b *byStart) Pop() any {
	old := *b
	last := old[len(old)-1]
	*b = old[:len(old)-1]
	return last
}

func (sp *span) wire(remoteParent bool) *tracev1.Span {
	w := &tracev1.Span{
		SpanId: hex.EncodeToString(sp.id[:]), Service: sp.service, Name: sp.name,
		StartUnixNano: int64(sp.start), EndUnixNano: int64(sp.end), Error: sp.err,
	}
	if sp.parent != (SpanID{}) {
		w.ParentSpanId = hex.EncodeToString(sp.parent[:])
		w.RemoteParent = remoteParent
	}
	if len(sp.attributes) > 0 {
		w.Attributes = make(map[string]string, len(sp.attributes))
		for _, a := range sp.attributes {
			w.Attributes[a.key] = a.value
		}
	}
	for _, l := range sp.links {
		w.Links = append(w.Links, hex.EncodeToString(l[:]))
	}
	return w
}
