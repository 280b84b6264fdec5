package tracestore

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/request"
)

// visible returns the spans of a trace that the caller may see: those that name an object (or
// all objects of a kind) that the caller may get, and those that name nothing and descend from
// such a span. own is the span of the write through which the trace was found; the caller may
// get its object. A caller that may get Path sees all spans.
func (s *Service) visible(ctx context.Context, spans []*span, own SpanID) []*span {
	if s.may(ctx, &request.Attributes{Verb: "get", Path: Path}) == nil {
		return spans
	}
	v := viewer{s: s, ctx: ctx, byID: make(map[SpanID]*span, len(spans)), objects: make(map[Object]bool), decided: make(map[SpanID]bool, len(spans))}
	for _, sp := range spans {
		v.byID[sp.id] = sp
	}
	v.decided[own] = true
	out := make([]*span, 0, len(spans))
	for _, sp := range spans {
		if v.sees(sp) {
			out = append(out, sp)
		}
	}
	return out
}

// viewer caches the decisions about one trace.
type viewer struct {
	s       *Service
	ctx     context.Context
	byID    map[SpanID]*span
	objects map[Object]bool
	decided map[SpanID]bool
}

// sees reports whether the caller may see a span.
func (v *viewer) sees(sp *span) bool {
	var path []*span // spans that name nothing, up to the first decided ancestor
	seen := false
	for sp != nil {
		decided, ok := v.decided[sp.id]
		if !ok {
			v.decided[sp.id] = false // ends the loop if spans are each other's ancestors
			path = append(path, sp)
			o, names := sp.names()
			if !names {
				sp = v.byID[sp.parent]
				continue
			}
			decided = v.may(o)
		}
		seen = decided
		break
	}
	for _, p := range path {
		v.decided[p.id] = seen
	}
	return seen
}

// may reports whether the caller may get an object in every API group that has such a resource,
// because spans do not contain the group.
func (v *viewer) may(o Object) bool {
	if allowed, ok := v.objects[o]; ok {
		return allowed
	}
	groups := v.s.lookup.Groups(o.Resource)
	allowed := len(groups) > 0
	for _, group := range groups {
		o.Group = group
		allowed = allowed && v.s.may(v.ctx, o.get()) == nil
	}
	o.Group = ""
	v.objects[o] = allowed
	return allowed
}

// get returns the attributes of a request to get the object.
func (o Object) get() *request.Attributes {
	a := &request.Attributes{
		Verb: "get", Resource: schema.GroupVersionResource{Group: o.Group, Resource: o.Resource}, Namespace: o.Namespace, Name: o.Name,
	}
	if o.Group == "" && o.Resource == "namespaces" {
		a.Namespace = o.Name // as for a request to get the namespace
	}
	return a
}

// names returns what a span names: an object, or, without a name, all objects of a kind. The
// resource is empty if the span does not name the kind; such a span is shown to no one.
func (sp *span) names() (o Object, ok bool) {
	if o, ok = sp.object(); ok {
		return o, true
	}
	return o, o.Resource != "" || o.Name != ""
}
