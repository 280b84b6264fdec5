package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"google.golang.org/protobuf/types/known/anypb"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Resource is typed access to one kind. It is a small value, safe for concurrent use; [For]
// and [Metadata] return it.
type Resource[T Object] struct {
	c    *Client
	kind *Kind
	// make returns an empty T.
	make func() T
	view resourcev1.View
	// part is the subresource that lists and watches read, or empty.
	part string
	// over carries the watches, if it is not nil.
	over *Watches
}

// For returns typed access to the kind of T, for instance For[*corev1.Pod](c). It panics if
// T is not a built-in kind with a collection.
func For[T Object](c *Client) Resource[T] {
	k := mustKind(reflect.TypeFor[T]())
	if k.Resource == "" {
		panic("client: " + k.GVK.Kind + " has no collection")
	}
	return Resource[T]{c: c, kind: k, make: func() T { return k.New().(T) }}
}

// PodNetworks returns access to pods/network: what nodes must know of all pods to enforce network
// policies, which is their names, labels and node, whether they use the network of the node, their
// phase, addresses and named ports. All other fields are empty. It can only be listed and watched,
// without a field selector.
//
// empty returns an empty T, whose Unmarshal decodes a Pod: a *corev1.Pod, or a smaller type.
func PodNetworks[T Object](c *Client, empty func() T) Resource[T] {
	return Resource[T]{c: c, kind: mustKind(reflect.TypeFor[*corev1.Pod]()), make: empty, part: "network"}
}

// Metadata returns access to the metadata of a kind: reads decode nothing else, and deletes
// and patches work. Creates and updates fail, because they would lose the rest of the
// object.
func Metadata(c *Client, k *Kind) Resource[*metav1.PartialObjectMetadata] {
	return Resource[*metav1.PartialObjectMetadata]{c: c, kind: k, view: resourcev1.View_VIEW_METADATA, make: func() *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{}
	}}
}

// WithoutManagedFields returns the resource with reads that leave out metadata.managedFields, which
// are often a third of an object. Do not update an object that was read like this: create a patch
// or apply instead, or set ManagedFields to nil as a request to drop them.
func (r Resource[T]) WithoutManagedFields() Resource[T] {
	if r.view == resourcev1.View_VIEW_UNSPECIFIED {
		r.view = resourcev1.View_VIEW_WITHOUT_MANAGED_FIELDS
	}
	return r
}

// Over returns the resource with watches that w carries.
func (r Resource[T]) Over(w *Watches) Resource[T] {
	r.over = w
	return r
}

// Kind returns the kind of the resource.
func (r Resource[T]) Kind() *Kind { return r.kind }

func (r Resource[T]) what(verb, namespace, name string) string {
	if namespace != "" {
		name = namespace + "/" + name
	}
	return fmt.Sprintf("%s %s %s", verb, r.kind.Resource, name)
}

func (r Resource[T]) decode(a *anypb.Any) (T, error) {
	obj := r.make()
	if r.view == resourcev1.View_VIEW_METADATA && a.GetTypeUrl() == metadataURL {
		if err := obj.Unmarshal(a.GetValue()); err != nil {
			return obj, fmt.Errorf("client: decode the metadata of a %s: %w", r.kind.GVK.Kind, err)
		}
		return obj, nil
	}
	if err := decode(r.kind, a, obj); err != nil {
		var none T
		return none, err
	}
	return obj, nil
}

func (r Resource[T]) encode(obj T) (*anypb.Any, error) {
	if u, ok := any(obj).(*Unstructured); ok {
		if u.kind != r.kind {
			return nil, fmt.Errorf("client: the Unstructured is not a %s: create it with NewUnstructured", r.kind.GVK.Kind)
		}
	} else if reflect.TypeOf(obj) != r.kind.goType {
		return nil, fmt.Errorf("client: %T is not the Go type of %s", obj, r.kind.GVK.Kind)
	}
	return encode(r.kind, obj)
}

// Get returns an object, in a state at least as new as every write that was acknowledged
// before the call. namespace is empty for cluster-scoped kinds. A missing object is a 404
// (apierrors.IsNotFound).
func (r Resource[T]) Get(ctx context.Context, namespace, name string) (T, error) {
	var none T
	resp, err := r.c.rpc.Get(ctx, &resourcev1.GetRequest{Ref: r.kind.Ref(namespace, name, ""), View: r.view})
	if err != nil {
		return none, fromRPC(ctx, r.what("get", namespace, name), err)
	}
	return r.decode(resp.GetObject())
}

// List returns the objects of a collection, ordered by namespace and name, all of one
// revision. See [Resource.All] for collections that should not be held in memory.
func (r Resource[T]) List(ctx context.Context, o ListOptions) ([]T, ListMeta, error) {
	var (
		items []T
		meta  ListMeta
	)
	for page, err := range r.pages(ctx, o) {
		if err != nil {
			return nil, ListMeta{}, err
		}
		meta = ListMeta{
			ResourceVersion:    page.GetResourceVersion(),
			Continue:           page.GetContinue(),
			RemainingItemCount: page.GetRemainingItemCount(),
		}
		for _, a := range page.GetItems() {
			obj, err := r.decode(a)
			if err != nil {
				return nil, ListMeta{}, err
			}
			items = append(items, obj)
		}
	}
	return items, meta, nil
}

// All returns an iterator over the objects of a collection, which holds one page at a time.
// An error is the last element.
func (r Resource[T]) All(ctx context.Context, o ListOptions) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		for page, err := range r.pages(ctx, o) {
			if err != nil {
				yield(none, err)
				return
			}
			for _, a := range page.GetItems() {
				obj, err := r.decode(a)
				if !yield(obj, err) || err != nil {
					return
				}
			}
		}
	}
}

func (r Resource[T]) pages(ctx context.Context, o ListOptions) iter.Seq2[*resourcev1.ListResponse, error] {
	return func(yield func(*resourcev1.ListResponse, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		what := r.what("list", o.Namespace, "")
		stream, err := r.c.rpc.List(ctx, &resourcev1.ListRequest{
			Ref:                  r.kind.Ref(o.Namespace, "", r.part),
			LabelSelector:        o.LabelSelector,
			FieldSelector:        o.FieldSelector,
			ResourceVersion:      o.ResourceVersion,
			ResourceVersionMatch: o.ResourceVersionMatch,
			Limit:                o.Limit,
			Continue:             o.Continue,
			PageSize:             o.PageSize,
			View:                 r.view,
		})
		if err != nil {
			yield(nil, fromRPC(ctx, what, err))
			return
		}
		for {
			page, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, fromRPC(ctx, what, err))
				return
			}
			if !yield(page, nil) {
				return
			}
		}
	}
}

// Create stores a new object and returns it as stored. If an object of that name exists, the
// error is a 409 (apierrors.IsAlreadyExists). With metadata.generateName in the place of a
// name, the server chooses one. After an error that is no Status, the object may exist; see
// [RequestID].
func (r Resource[T]) Create(ctx context.Context, obj T, opts ...WriteOption) (T, error) {
	var none T
	a, err := r.encode(obj)
	if err != nil {
		return none, err
	}
	o := r.c.writeOptions(opts)
	// The name travels in the object; at a subresource the reference needs it.
	name := ""
	if o.subresource != "" {
		name = obj.GetName()
	}
	resp, err := r.c.rpc.Create(ctx, &resourcev1.CreateRequest{
		Ref: r.kind.Ref(obj.GetNamespace(), name, o.subresource), Object: a, Options: &o.rpc,
	})
	if err != nil {
		return none, fromRPC(ctx, r.what("create", obj.GetNamespace(), obj.GetName()), err)
	}
	return r.decode(resp.GetObject())
}

// Update replaces an object and returns it as stored. If obj has a resourceVersion and the
// object has changed since, the error is a 409 (apierrors.IsConflict). The status of kinds
// that have a status subresource is not changed: see [Resource.UpdateStatus].
func (r Resource[T]) Update(ctx context.Context, obj T, opts ...WriteOption) (T, error) {
	var none T
	a, err := r.encode(obj)
	if err != nil {
		return none, err
	}
	o := r.c.writeOptions(opts)
	resp, err := r.c.rpc.Update(ctx, &resourcev1.UpdateRequest{
		Ref: r.kind.Ref(obj.GetNamespace(), obj.GetName(), o.subresource), Object: a, Options: &o.rpc,
	})
	if err != nil {
		return none, fromRPC(ctx, r.what("update", obj.GetNamespace(), obj.GetName()), err)
	}
	return r.decode(resp.GetObject())
}

// UpdateStatus replaces the status of an object and returns the object as stored. Everything
// else in obj is ignored, except its resourceVersion, which is a condition as in Update.
func (r Resource[T]) UpdateStatus(ctx context.Context, obj T, opts ...WriteOption) (T, error) {
	return r.Update(ctx, obj, append([]WriteOption{Subresource("status")}, opts...)...)
}

// Patch changes part of an object and returns it as stored. kind is types.JSONPatchType (RFC
// 6902), MergePatchType (RFC 7386) or StrategicMergePatchType; for apply patches, use
// [Resource.Apply].
func (r Resource[T]) Patch(ctx context.Context, namespace, name string, kind types.PatchType, data []byte, opts ...WriteOption) (T, error) {
	var none T
	k, err := patchKind(kind)
	if err != nil {
		return none, err
	}
	o := r.c.writeOptions(opts)
	resp, err := r.c.rpc.Patch(ctx, &resourcev1.PatchRequest{
		Ref: r.kind.Ref(namespace, name, o.subresource), Kind: k, Patch: data, Options: &o.rpc,
	})
	if err != nil {
		return none, fromRPC(ctx, r.what("patch", namespace, name), err)
	}
	return r.decode(resp.GetObject())
}

func patchKind(kind types.PatchType) (resourcev1.PatchRequest_Kind, error) {
	switch kind {
	case types.JSONPatchType:
		return resourcev1.PatchRequest_KIND_JSON, nil
	case types.MergePatchType:
		return resourcev1.PatchRequest_KIND_MERGE, nil
	case types.StrategicMergePatchType:
		return resourcev1.PatchRequest_KIND_STRATEGIC_MERGE, nil
	}
	return 0, fmt.Errorf("client: patch type %q: use Apply for apply patches", kind)
}

// Apply performs server-side apply of the fields that obj sets, which are those that are not
// zero (a pointer to a zero value is set), as manager, and returns the object as stored. It
// creates the object if it does not exist. Fields that manager applied before and obj does
// not set are removed. Fields that other managers own with another value are a 409
// (apierrors.IsConflict), unless [Force] is given.
func (r Resource[T]) Apply(ctx context.Context, obj T, manager string, opts ...WriteOption) (T, error) {
	data, err := Configuration(r.kind, obj)
	if err != nil {
		var none T
		return none, err
	}
	return r.ApplyConfiguration(ctx, obj.GetNamespace(), obj.GetName(), data, manager, opts...)
}

// ApplyConfiguration performs server-side apply of a JSON or YAML document, as
// [Resource.Apply] does. The document must have apiVersion and kind.
func (r Resource[T]) ApplyConfiguration(ctx context.Context, namespace, name string, document []byte, manager string, opts ...WriteOption) (T, error) {
	var none T
	o := r.c.writeOptions(opts)
	o.rpc.FieldManager = manager
	resp, err := r.c.rpc.Apply(ctx, &resourcev1.ApplyRequest{
		Ref: r.kind.Ref(namespace, name, o.subresource), Configuration: document, Force: o.force, Options: &o.rpc,
	})
	if err != nil {
		return none, fromRPC(ctx, r.what("apply", namespace, name), err)
	}
	return r.decode(resp.GetObject())
}

// Delete removes an object, or begins its graceful termination: a pod that runs, or an object
// with finalizers, is gone later. A missing object is a 404 (apierrors.IsNotFound).
func (r Resource[T]) Delete(ctx context.Context, namespace, name string, opts ...DeleteOption) error {
	_, _, err := r.DeleteObject(ctx, namespace, name, opts...)
	return err
}

// DeleteObject is [Resource.Delete] that also returns the object. gone is true if nothing is
// left of it; obj is then its last state, or nil.
func (r Resource[T]) DeleteObject(ctx context.Context, namespace, name string, opts ...DeleteOption) (obj T, gone bool, err error) {
	resp, err := r.c.rpc.Delete(ctx, deleteRequest(r.c, r.kind, namespace, name, opts))
	if err != nil {
		return obj, false, fromRPC(ctx, r.what("delete", namespace, name), err)
	}
	if resp.GetObject() == nil {
		return obj, resp.GetGone(), nil
	}
	obj, err = r.decode(resp.GetObject())
	return obj, resp.GetGone(), err
}

func deleteRequest(c *Client, k *Kind, namespace, name string, opts []DeleteOption) *resourcev1.DeleteRequest {
	o := newDeleteOptions(opts)
	return &resourcev1.DeleteRequest{
		Ref:                k.Ref(namespace, name, ""),
		Preconditions:      o.preconditions,
		GracePeriodSeconds: o.grace,
		PropagationPolicy:  o.propagation,
		Options:            &resourcev1.WriteOptions{DryRun: o.dryRun, FieldManager: c.fieldManager(), RequestId: o.requestID},
	}
}

// DeleteCollection deletes the objects that a list with the same namespace and selectors
// would return, and returns their number.
func (r Resource[T]) DeleteCollection(ctx context.Context, l ListOptions, opts ...DeleteOption) (int64, error) {
	o := newDeleteOptions(opts)
	resp, err := r.c.rpc.DeleteCollection(ctx, &resourcev1.DeleteCollectionRequest{
		Ref:                r.kind.Ref(l.Namespace, "", ""),
		LabelSelector:      l.LabelSelector,
		FieldSelector:      l.FieldSelector,
		GracePeriodSeconds: o.grace,
		PropagationPolicy:  o.propagation,
		Options:            &resourcev1.WriteOptions{DryRun: o.dryRun, FieldManager: r.c.manager},
	})
	if err != nil {
		return 0, fromRPC(ctx, r.what("deletecollection", l.Namespace, ""), err)
	}
	return resp.GetCount(), nil
}
