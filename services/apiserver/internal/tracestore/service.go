package tracestore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/apistatus"
	tracev1 "keelson.dev/proto/keelson/trace/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/telemetry"
)

// Path is the non-resource path that authorizes access to the store: "post" permits to export,
// "get" to read every trace.
const Path = "/debug/traces"

// Lookup finds the trace context of an object's last write.
type Lookup interface {
	// Traceparent returns the W3C traceparent of the object's last write, or "" if the write
	// was not traced. If the object does not exist, it returns a NotFound error.
	Traceparent(ctx context.Context, o Object) (string, error)
	// Groups returns the API groups that have a resource of this name.
	Groups(resource string) []string
}

// Service serves a Store over gRPC: it receives spans from all services, and returns the trace
// of an object.
type Service struct {
	tracev1.UnimplementedTraceServiceServer
	store     *Store
	lookup    Lookup
	authorize authz.Authorizer
	forward   *Forward
	quota     quota
	peers     func() []grpc.ClientConnInterface // may be nil
}

// NewService returns a service. forward may be nil.
func NewService(s *Store, l Lookup, z authz.Authorizer, forward *Forward) *Service {
	return &Service{store: s, lookup: l, authorize: z, forward: forward}
}

// Register registers TraceService and OTLP's collector service.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	tracev1.RegisterTraceServiceServer(r, s)
	collectorpb.RegisterTraceServiceServer(r, collector{Service: s})
}

// collector implements OTLP's TraceService.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	*Service
}

// Export stores spans and forwards them.
func (c collector) Export(ctx context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	if err := c.may(ctx, &request.Attributes{Verb: "post", Path: Path}); err != nil {
		return nil, wire(ctx, err)
	}
	res := &collectorpb.ExportTraceServiceResponse{}
	if n := count(r.GetResourceSpans()); !c.quota.take(request.UserFrom(ctx).Name, n, size(r.GetResourceSpans()), c.store.cfg.Now()) {
		res.PartialSuccess = &collectorpb.ExportTracePartialSuccess{
			RejectedSpans: int64(n), ErrorMessage: fmt.Sprintf("the quota of %d spans and %d bytes per second and user is exceeded", quotaSpans, quotaBytes),
		}
		return res, nil
	}
	if rejected := c.store.Add(r.GetResourceSpans()); rejected > 0 {
		res.PartialSuccess = &collectorpb.ExportTracePartialSuccess{
			RejectedSpans: int64(rejected), ErrorMessage: "spans need a trace id of 16 bytes and a span id of 8 bytes",
		}
	}
	c.forward.Send(r.GetResourceSpans())
	return res, nil
}

// GetTrace implements TraceService.
func (s *Service) GetTrace(ctx context.Context, r *tracev1.GetTraceRequest) (*tracev1.GetTraceResponse, error) {
	id, own, err := s.find(ctx, r)
	if err != nil {
		return nil, wire(ctx, err)
	}
	all := s.trace(ctx, id)
	spans := s.visible(ctx, all.spans, own)
	if len(spans) == 0 {
		err := apierrors.NewNotFound(traceResource, hex.EncodeToString(id[:]))
		err.ErrStatus.Message = fmt.Sprintf("trace %x is not in memory: apiservers keep recent traces, and lose them when they restart", id[:])
		return nil, wire(ctx, err)
	}
	dropped := all.dropped || len(spans) < len(all.spans)
	return &tracev1.GetTraceResponse{TraceId: hex.EncodeToString(id[:]), Spans: arrange(spans, dropped), Dropped: dropped}, nil
}

var traceResource = schema.GroupResource{Group: "trace.keelson.dev", Resource: "traces"}

// find returns the id of the requested trace, if the caller may see it. If it was found through
// an object's last write, own is that write's span.
func (s *Service) find(ctx context.Context, r *tracev1.GetTraceRequest) (id TraceID, own SpanID, err error) {
	if n := r.GetEarlier(); n < 0 || n > maxEarlier || n > 0 && r.GetTraceId() != "" {
		return id, own, apierrors.NewBadRequest(fmt.Sprintf("earlier %d: expected 0 to %d, and 0 with a trace id", n, maxEarlier))
	}
	if r.GetTraceId() != "" {
		if err := s.may(ctx, &request.Attributes{Verb: "get", Path: Path}); err != nil {
			return id, own, err
		}
		b, err := hex.DecodeString(r.GetTraceId())
		if err != nil || len(b) != len(id) {
			return id, own, apierrors.NewBadRequest(fmt.Sprintf("trace id %q: expected 32 hexadecimal digits", r.GetTraceId()))
		}
		copy(id[:], b)
		return id, own, nil
	}
	o := Object{Group: r.GetGroup(), Resource: r.GetResource(), Namespace: r.GetNamespace(), Name: r.GetName()}
	if o.Resource == "" || o.Name == "" {
		return id, own, apierrors.NewBadRequest("specify a trace id, or the resource and name of an object")
	}
	if err := s.may(ctx, o.get()); err != nil {
		return id, own, err
	}
	if !slices.Contains(s.lookup.Groups(o.Resource), o.Group) {
		// Spans do not contain the API group: do not find those of another group's object.
		return id, own, apierrors.NewNotFound(schema.GroupResource{Group: o.Group, Resource: o.Resource}, o.Name)
	}
	id, own, err = s.current(ctx, o)
	if err != nil || r.GetEarlier() == 0 {
		return id, own, err
	}
	id, ok := s.earlier(ctx, o, id, int(r.GetEarlier()))
	if !ok {
		err := apierrors.NewNotFound(traceResource, o.Name)
		err.ErrStatus.Message = fmt.Sprintf("no trace of an earlier write of %s %q is in memory", o.Resource, o.Name)
		return id, own, err
	}
	return id, SpanID{}, nil
}

// maxEarlier bounds how many writes a request may go back.
const maxEarlier = 1000

// current returns the trace of an object: that of its last write if an apiserver has spans of it,
// otherwise the newest one with a span that names the object (the last write was not recorded,
// or the object was deleted).
func (s *Service) current(ctx context.Context, o Object) (id TraceID, own SpanID, err error) {
	tp, err := s.lookup.Traceparent(ctx, o)
	if err != nil && !apierrors.IsNotFound(err) {
		return id, own, err
	}
	written, recorded := telemetry.ParseTraceparent(tp)
	if recorded {
		if len(s.trace(ctx, TraceID(written.TraceID())).spans) > 0 {
			return TraceID(written.TraceID()), SpanID(written.SpanID()), nil
		}
	}
	if id, ok := s.newest(ctx, o); ok {
		return id, own, nil
	}
	switch {
	case err != nil:
		return id, own, err
	case recorded:
		return TraceID(written.TraceID()), SpanID(written.SpanID()), nil // the caller gets NotFound with this id
	}
	return id, own, notTraced(o)
}

func notTraced(o Object) error {
	err := apierrors.NewNotFound(traceResource, o.Name)
	err.ErrStatus.Message = fmt.Sprintf("the last write of %s %q was not traced", o.Resource, o.Name)
	return err
}

// may returns a Forbidden error if the caller is not authorized for a.
func (s *Service) may(ctx context.Context, a *request.Attributes) error {
	a.User = request.UserFrom(ctx)
	allowed, reason, err := s.authorize.Authorize(ctx, a)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil || !allowed {
		return authz.Forbidden(a, reason)
	}
	return nil
}

// wire converts an error to a gRPC status error with Kubernetes' Status in its details.
func wire(ctx context.Context, err error) error {
	var se *apierrors.StatusError
	switch {
	case errors.As(err, &se):
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	default:
		se = apierrors.NewInternalError(err)
	}
	return apistatus.ToGRPC(&se.ErrStatus)
}
