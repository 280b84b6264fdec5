// Package grpc is the gRPC front: keelson.resource.v1.ResourceService over the pipeline.
//
// It only translates: it must never decide what a request may do, nor decode an object.
package grpc

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/apistatus"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/pipeline"
)

const (
	typePrefix = "type.googleapis.com/"
	statusURL  = typePrefix + "k8s.io.apimachinery.pkg.apis.meta.v1.Status"
)

// Service implements ResourceService.
type Service struct {
	resourcev1.UnimplementedResourceServiceServer
	api   pipeline.API
	types *typeNames
	// MinWatch is the minimum time after which a watch ends, to be resumed. The maximum is twice
	// as long. 0 means half an hour.
	MinWatch time.Duration
}

// New returns the service.
func New(api pipeline.API) *Service {
	return &Service{api: api, types: newTypeNames(api.Table())}
}

// Get implements ResourceService.
func (s *Service) Get(ctx context.Context, r *resourcev1.GetRequest) (*resourcev1.GetResponse, error) {
	describe(ctx, "get", r.GetRef())
	v, err := viewOf(r.GetView())
	if err != nil {
		return nil, wire(ctx, err)
	}
	out, err := s.api.Get(ctx, target(r.GetRef()), pipeline.GetOptions{ResourceVersion: r.GetResourceVersion()})
	if err != nil {
		return nil, wire(ctx, err)
	}
	obj, err := s.object(out)
	if err == nil && v != whole {
		obj.TypeUrl = v.url(obj.TypeUrl)
		obj.Value, err = v.of(obj.Value)
	}
	return &resourcev1.GetResponse{Object: obj}, wire(ctx, err)
}

// Create implements ResourceService.
func (s *Service) Create(ctx context.Context, r *resourcev1.CreateRequest) (*resourcev1.CreateResponse, error) {
	describe(ctx, "create", r.GetRef())
	out, err := s.api.Create(ctx, target(r.GetRef()), s.body(r.GetObject()), writeOptions(ctx, r.GetOptions()))
	if err != nil {
		return nil, wire(ctx, err)
	}
	obj, err := s.object(out)
	return &resourcev1.CreateResponse{Object: obj}, wire(ctx, err)
}

// Update implements ResourceService.
func (s *Service) Update(ctx context.Context, r *resourcev1.UpdateRequest) (*resourcev1.UpdateResponse, error) {
	describe(ctx, "update", r.GetRef())
	out, err := s.api.Update(ctx, target(r.GetRef()), s.body(r.GetObject()), writeOptions(ctx, r.GetOptions()))
	if err != nil {
		return nil, wire(ctx, err)
	}
	obj, err := s.object(out)
	return &resourcev1.UpdateResponse{Object: obj}, wire(ctx, err)
}

// patchKinds maps kinds of patches in the API to their media types.
var patchKinds = map[resourcev1.PatchRequest_Kind]types.PatchType{
	resourcev1.PatchRequest_KIND_JSON:            types.JSONPatchType,
	resourcev1.PatchRequest_KIND_MERGE:           types.MergePatchType,
	resourcev1.PatchRequest_KIND_STRATEGIC_MERGE: types.StrategicMergePatchType,
}

// Patch implements ResourceService.
func (s *Service) Patch(ctx context.Context, r *resourcev1.PatchRequest) (*resourcev1.PatchResponse, error) {
	describe(ctx, "patch", r.GetRef())
	out, err := s.api.Patch(ctx, target(r.GetRef()), patchKinds[r.GetKind()],
		pipeline.Body{Data: r.GetPatch(), Type: pipeline.JSON}, writeOptions(ctx, r.GetOptions()))
	if err != nil {
		return nil, wire(ctx, err)
	}
	obj, err := s.object(out)
	return &resourcev1.PatchResponse{Object: obj}, wire(ctx, err)
}

// Apply implements ResourceService.
func (s *Service) Apply(ctx context.Context, r *resourcev1.ApplyRequest) (*resourcev1.ApplyResponse, error) {
	describe(ctx, "apply", r.GetRef())
	o := writeOptions(ctx, r.GetOptions())
	o.Force = r.GetForce()
	out, err := s.api.Patch(ctx, target(r.GetRef()), types.ApplyPatchType, pipeline.Body{Data: r.GetConfiguration(), Type: pipeline.YAML}, o)
	if err != nil {
		return nil, wire(ctx, err)
	}
	obj, err := s.object(out)
	return &resourcev1.ApplyResponse{Object: obj}, wire(ctx, err)
}

// Delete implements ResourceService.
func (s *Service) Delete(ctx context.Context, r *resourcev1.DeleteRequest) (*resourcev1.DeleteResponse, error) {
	describe(ctx, "delete", r.GetRef())
	out, err := s.api.Delete(ctx, target(r.GetRef()), deleteOptions(ctx, r))
	if err != nil {
		return nil, wire(ctx, err)
	}
	obj, err := s.object(out)
	return &resourcev1.DeleteResponse{Object: obj, Gone: out.Gone}, wire(ctx, err)
}

// DeleteCollection implements ResourceService.
func (s *Service) DeleteCollection(ctx context.Context, r *resourcev1.DeleteCollectionRequest) (*resourcev1.DeleteCollectionResponse, error) {
	describe(ctx, "deletecollection", r.GetRef())
	d := deleteOptions(ctx, r)
	list, err := s.api.DeleteCollection(ctx, target(r.GetRef()),
		pipeline.ListOptions{LabelSelector: r.GetLabelSelector(), FieldSelector: r.GetFieldSelector()}, d)
	if err != nil {
		return nil, wire(ctx, err)
	}
	return &resourcev1.DeleteCollectionResponse{Count: int64(len(list.Items))}, nil
}

// maxWrites bounds the writes of a Commit.
const maxWrites = 1000

// Commit implements ResourceService.
func (s *Service) Commit(ctx context.Context, r *resourcev1.CommitRequest) (*resourcev1.CommitResponse, error) {
	if n := len(r.GetWrites()); n > maxWrites {
		return nil, wire(ctx, apierrors.NewRequestEntityTooLargeError("a commit contains "+strconv.Itoa(n)+" writes; at most "+strconv.Itoa(maxWrites)+" are allowed"))
	}
	describeCommit(ctx, len(r.GetWrites()))
	writes := make([]pipeline.Write, len(r.GetWrites()))
	for i, w := range r.GetWrites() {
		writes[i] = s.write(ctx, w)
	}
	results := s.api.Commit(ctx, writes)
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if err := refused(results); err != nil {
		return nil, wire(ctx, err)
	}
	out := &resourcev1.CommitResponse{Results: make([]*resourcev1.WriteResult, len(results))}
	for i := range results {
		out.Results[i] = s.result(&results[i], r.GetOmitObjects())
	}
	return out, nil
}

// refused returns the error with which every write was refused because the store cannot be
// reached, or nil. Nothing was done, so the client may retry with another apiserver.
func refused(results []pipeline.Result) (err error) {
	for i := range results {
		if err = results[i].Err; !pipeline.NothingDone(err) {
			return nil
		}
	}
	return err
}

func (s *Service) write(ctx context.Context, w *resourcev1.Write) pipeline.Write {
	out := pipeline.Write{Traceparent: w.GetTraceparent()}
	switch {
	case w.GetCreate() != nil:
		r := w.GetCreate()
		out.Verb, out.Target, out.Body, out.Options = "create", target(r.GetRef()), s.body(r.GetObject()), writeOptions(ctx, r.GetOptions())
	case w.GetUpdate() != nil:
		r := w.GetUpdate()
		out.Verb, out.Target, out.Body, out.Options = "update", target(r.GetRef()), s.body(r.GetObject()), writeOptions(ctx, r.GetOptions())
	case w.GetPatch() != nil:
		r := w.GetPatch()
		out.Verb, out.Target, out.Options = "patch", target(r.GetRef()), writeOptions(ctx, r.GetOptions())
		out.PatchType, out.Body = patchKinds[r.GetKind()], pipeline.Body{Data: r.GetPatch(), Type: pipeline.JSON}
	case w.GetApply() != nil:
		r := w.GetApply()
		out.Verb, out.Target, out.Options = "patch", target(r.GetRef()), writeOptions(ctx, r.GetOptions())
		out.Options.Force = r.GetForce()
		out.PatchType, out.Body = types.ApplyPatchType, pipeline.Body{Data: r.GetConfiguration(), Type: pipeline.YAML}
	case w.GetDelete() != nil:
		r := w.GetDelete()
		out.Verb, out.Target, out.Delete = "delete", target(r.GetRef()), deleteOptions(ctx, r)
	}
	return out
}

func (s *Service) result(r *pipeline.Result, omit bool) *resourcev1.WriteResult {
	if r.Err != nil {
		return &resourcev1.WriteResult{Status: statusAny(r.Err)}
	}
	out := &resourcev1.WriteResult{}
	if item := r.Outcome.Item; item != nil {
		out.ResourceVersion = item.Object().GetResourceVersion()
	}
	if !omit {
		obj, err := s.object(r.Outcome)
		if err != nil {
			return &resourcev1.WriteResult{Status: statusAny(err)}
		}
		out.Object = obj
	}
	return out
}

// target returns the target that a Ref names.
func target(r *resourcev1.Ref) pipeline.Target {
	return pipeline.Target{
		Resource:    schema.GroupVersionResource{Group: r.GetGroup(), Version: r.GetVersion(), Resource: r.GetResource()},
		Subresource: r.GetSubresource(),
		Namespace:   r.GetNamespace(),
		Name:        r.GetName(),
	}
}

func (s *Service) body(a *anypb.Any) pipeline.Body {
	return pipeline.Body{Data: a.GetValue(), Type: pipeline.Message, GVK: s.types.kind(a.GetTypeUrl())}
}

// object returns the response for an outcome.
func (s *Service) object(out *pipeline.Outcome) (*anypb.Any, error) {
	switch {
	case out.Item != nil:
		return &anypb.Any{TypeUrl: s.types.url(out.Item.Kind), Value: out.Item.Raw}, nil
	case out.Other != nil:
		data, err := out.Other.Marshal()
		return &anypb.Any{TypeUrl: typePrefix + protoName(out.Other), Value: data}, err
	case out.Status != nil:
		data, err := out.Status.Marshal()
		return &anypb.Any{TypeUrl: statusURL, Value: data}, err
	}
	return nil, nil
}

func writeOptions(ctx context.Context, o *resourcev1.WriteOptions) pipeline.WriteOptions {
	return pipeline.WriteOptions{DryRun: o.GetDryRun(), FieldManager: o.GetFieldManager(), UserAgent: userAgent(ctx), RequestID: o.GetRequestId()}
}

// userAgent returns the client's user agent, to which gRPC has appended its own name and version.
func userAgent(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("user-agent"); len(v) > 0 {
		return v[0]
	}
	return ""
}

// deletion is implemented by both delete requests.
type deletion interface {
	GetPropagationPolicy() string
	GetOptions() *resourcev1.WriteOptions
}

func deleteOptions(ctx context.Context, r deletion) pipeline.DeleteOptions {
	o := pipeline.DeleteOptions{WriteOptions: writeOptions(ctx, r.GetOptions())}
	if p := metav1.DeletionPropagation(r.GetPropagationPolicy()); p != "" {
		o.PropagationPolicy = &p
	}
	switch r := r.(type) {
	case *resourcev1.DeleteRequest:
		o.GracePeriodSeconds = r.GracePeriodSeconds
		if p := r.GetPreconditions(); p != nil {
			o.Preconditions = &metav1.Preconditions{}
			if uid := types.UID(p.GetUid()); uid != "" {
				o.Preconditions.UID = &uid
			}
			if rv := p.GetResourceVersion(); rv != "" {
				o.Preconditions.ResourceVersion = &rv
			}
		}
	case *resourcev1.DeleteCollectionRequest:
		o.GracePeriodSeconds = r.GracePeriodSeconds
	}
	return o
}

// wire converts an error of the pipeline to a gRPC status with the Kubernetes Status in its
// details.
func wire(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var se *apierrors.StatusError
	if errors.As(err, &se) {
		return apistatus.ToGRPC(&se.ErrStatus)
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return apistatus.ToGRPC(&apierrors.NewInternalError(err).ErrStatus)
}

// statusAny returns the Status of an error as an Any.
func statusAny(err error) *anypb.Any {
	var se *apierrors.StatusError
	if !errors.As(err, &se) {
		se = apierrors.NewInternalError(err)
	}
	data, merr := se.ErrStatus.Marshal()
	if merr != nil {
		data = nil
	}
	return &anypb.Any{TypeUrl: statusURL, Value: data}
}
