package tracestore

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// Exporter returns an exporter of the apiserver's own spans, which adds them to s without a
// connection. forward may be nil.
func Exporter(s *Store, forward *Forward) sdktrace.SpanExporter {
	return otlptrace.NewUnstarted(door{s, forward})
}

// door is an otlptrace.Client without a connection.
type door struct {
	store   *Store
	forward *Forward
}

func (door) Start(context.Context) error { return nil }
func (door) Stop(context.Context) error  { return nil }

// UploadTraces implements otlptrace.Client.
func (d door) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) error {
	d.store.Add(spans)
	d.forward.Send(spans)
	return nil
}

// Objects is a Lookup that reads objects through the pipeline. Its caller has already been
// authorized.
type Objects struct{ API pipeline.API }

// Traceparent implements Lookup.
func (l Objects) Traceparent(ctx context.Context, o Object) (string, error) {
	ctx = request.WithUser(ctx, request.User{Name: "system:apiserver", Groups: []string{authz.MastersGroup}})
	gvr := schema.GroupVersionResource{Group: o.Group, Resource: o.Resource}
	for _, k := range l.API.Table().Kinds() {
		if k.GVK.Group == o.Group && k.Resource == o.Resource && !k.Virtual() {
			gvr.Version = k.GVK.Version
			break
		}
	}
	out, err := l.API.Get(ctx, pipeline.Target{Resource: gvr, Namespace: o.Namespace, Name: o.Name}, pipeline.GetOptions{})
	if err != nil || out.Item == nil {
		return "", err
	}
	return out.Item.Traceparent, nil
}

// Groups implements Lookup.
func (l Objects) Groups(resource string) (groups []string) {
	for _, k := range l.API.Table().Kinds() {
		if k.Resource == resource && !k.Virtual() && !slices.Contains(groups, k.GVK.Group) {
			groups = append(groups, k.GVK.Group)
		}
	}
	return groups
}
