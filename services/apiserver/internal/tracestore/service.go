package tracestore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/client"
	tracev1 "keelson.dev/proto/keelson/trace/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/telemetry"
)

// Path stands for the store in authorization: who may post to it may export, who
// may get it may read any trace.
const Path = "/debug/traces"

// Lookup finds the trace context of the last write of an object.
type Lookup interface {
	// Traceparent is a W3C traceparent, or empty where the write had none. A
	// missing object is NotFound.
	Traceparent(ctx context.Context, o Object) (string, error)
}

// Service serves a Store over gRPC: it takes in spans from every service, and
// answers what happened to an object.
type Service struct {
	tracev1.UnimplementedTraceServiceServer
	store     *Store
	lookup    Lookup
	authorize authz.Authorizer
	forward   *Forward
}

// NewService serves the store. forward may be nil.
func NewService(s *Store, l Lookup, z authz.Authorizer, forward *Forward) *Service {
	return &Service{store: s, lookup: l, authorize: z, forward: forward}
}

// Register adds both services to a server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	tracev1.RegisterTraceServiceServer(r, s)
	collectorpb.RegisterTraceServiceServer(r, collector{Service: s})
}

// collector is the door of OTLP.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	*Service
}

// Export takes in spans.
func (c collector) Export(ctx context.Context, r *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	if err := c.may(ctx, &request.Attributes{Verb: "post", Path: Path}); err != nil {
		return nil, wire(ctx, err)
	}
	res := &collectorpb.ExportTraceServiceResponse{}
	if rejected := c.store.Add(r.GetResourceSpans()); rejected > 0 {
		res.PartialSuccess = &collectorpb.ExportTracePartialSuccess{
			RejectedSpans: int64(rejected), ErrorMessage: "spans without a trace id of 16 or a span id of 8 bytes",
		}
	}
	c.forward.Send(r.GetResourceSpans())
	return res, nil
}

// GetTrace implements TraceService.
func (s *Service) GetTrace(ctx context.Context, r *tracev1.GetTraceRequest) (*tracev1.GetTraceResponse, error) {
	id, err := s.find(ctx, r)
	if err != nil {
		return nil, wire(ctx, err)
	}
	spans, dropped, ok := s.store.trace(id)
	if !ok {
		return nil, wire(ctx, apierrors.NewNotFound(traceResource, hex.EncodeToString(id[:])))
	}
	return &tracev1.GetTraceResponse{TraceId: hex.EncodeToString(id[:]), Spans: arrange(spans, dropped), Dropped: dropped}, nil
}

var traceResource = schema.GroupResource{Group: "trace.keelson.dev", Resource: "traces"}

// find is the trace that a request means, if he who asks may see it.
func (s *Service) find(ctx context.Context, r *tracev1.GetTraceRequest) (id TraceID, err error) {
	if r.GetTraceId() != "" {
		if err := s.may(ctx, &request.Attributes{Verb: "get", Path: Path}); err != nil {
			return id, err
		}
		b, err := hex.DecodeString(r.GetTraceId())
		if err != nil || len(b) != len(id) {
			return id, apierrors.NewBadRequest(fmt.Sprintf("trace id %q: want 32 hexadecimal digits", r.GetTraceId()))
		}
		copy(id[:], b)
		return id, nil
	}
	o := Object{Group: r.GetGroup(), Resource: r.GetResource(), Namespace: r.GetNamespace(), Name: r.GetName()}
	if o.Resource == "" || o.Name == "" {
		return id, apierrors.NewBadRequest("name a trace id, or the resource and name of an object")
	}
	if err := s.may(ctx, &request.Attributes{
		Verb: "get", Resource: schema.GroupVersionResource{Group: o.Group, Resource: o.Resource}, Namespace: o.Namespace, Name: o.Name,
	}); err != nil {
		return id, err
	}
	return s.current(ctx, o)
}

// current is the trace of an object: that of its last write, if spans of it are
// here; otherwise the newest whose spans name it (an object whose last write was
// not recorded, or that is gone).
func (s *Service) current(ctx context.Context, o Object) (TraceID, error) {
	tp, err := s.lookup.Traceparent(ctx, o)
	if err != nil && !apierrors.IsNotFound(err) {
		return TraceID{}, err
	}
	written, recorded := telemetry.ParseTraceparent(tp)
	if recorded {
		if _, _, here := s.store.trace(TraceID(written.TraceID())); here {
			return TraceID(written.TraceID()), nil
		}
	}
	if id, ok := s.store.newest(o); ok {
		return id, nil
	}
	switch {
	case err != nil:
		return TraceID{}, err
	case recorded:
		return TraceID(written.TraceID()), nil // not found, by its id
	}
	return TraceID{}, notTraced(o)
}

func notTraced(o Object) error {
	err := apierrors.NewNotFound(traceResource, o.Name)
	err.ErrStatus.Message = fmt.Sprintf("the last write of %s %q was not traced", o.Resource, o.Name)
	return err
}

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

// wire is an error as gRPC carries it, with Kubernetes' Status.
func wire(ctx context.Context, err error) error {
	var se *apierrors.StatusError
	switch {
	case errors.As(err, &se):
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	default:
		se = apierrors.NewInternalError(err)
	}
	return client.ToStatus(&se.ErrStatus)
}
