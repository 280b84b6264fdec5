package tracestore

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/request"
)

// visible are the spans of a trace that the caller may see: those that name an object,
// or objects of a kind, that it may get, and those that name nothing below one of them.
// own is the span of the write by which the trace was found, whose object it may get.
// Who may read traces as such sees all of them.
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

// viewer remembers what was decided of one trace.
type viewer struct {
	s       *Service
	ctx     context.Context
	byID    map[SpanID]*span
	objects map[Object]bool
	decided map[SpanID]bool
}

func (v *viewer) sees(sp *span) bool {
	var path []*span // of spans that name nothing, up to one that is decided
	seen := false
	for sp != nil {
		decided, ok := v.decided[sp.id]
		if !ok {
			v.decided[sp.id] = false // also for spans that are each other's parents
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

// may reports whether the caller may get an object, whichever of the groups that have
// such a resource it is of: spans do not tell.
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

// get asks for the right to read the object.
func (o Object) get() *request.Attributes {
	a := &request.Attributes{
		Verb: "get", Resource: schema.GroupVersionResource{Group: o.Group, Resource: o.Resource}, Namespace: o.Namespace, Name: o.Name,
	}
	if o.Group == "" && o.Resource == "namespaces" {
		a.Namespace = o.Name // as a request for it is authorized
	}
	return a
}

// names is what a span names: an object, or without a name the objects of a kind. The
// resource is empty where the span leaves open what kind it names: then it is shown to no one.
func (sp *span) names() (o Object, ok bool) {
	if o, ok = sp.object(); ok {
		return o, true
	}
	return o, o.Resource != "" || o.Name != ""
}
