package client

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/apistatus"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// MaxBatch is the largest number of writes in one message. Commit splits longer batches and
// sends the messages one after the other.
const MaxBatch = 1000

// Write is one write of a batch, made by [CreateWrite], [UpdateWrite], [StatusWrite],
// [PatchWrite], [ApplyWrite], [DeleteWrite] or [BindWrite]. An object that cannot be encoded
// makes [Client.Commit] fail.
type Write struct {
	pb *resourcev1.Write
	// kind is what the answer holds; nil where it holds no object.
	kind *Kind
	err  error
}

// WithTraceparent sets the W3C trace context of the write; by default, it belongs to the
// trace of the batch.
func (w Write) WithTraceparent(traceparent string) Write {
	if w.pb != nil {
		w.pb.Traceparent = traceparent
	}
	return w
}

// WriteResult is the result of one write of a batch.
type WriteResult struct {
	// Object is the object as stored, if the write succeeded, returns an object, and
	// [Client.Commit] was called.
	Object Object
	// ResourceVersion is the object's resource version after the write.
	ResourceVersion string
	// Err is the reason why the write failed, usually a *apierrors.StatusError; nil if it
	// succeeded.
	Err error
}

// CreateWrite returns the write that creates obj.
func CreateWrite(obj Object, opts ...WriteOption) Write {
	k, o := KindOf(obj), (*Client)(nil).writeOptions(opts)
	a, err := Encode(obj)
	if err != nil {
		return Write{err: err}
	}
	return Write{kind: k, pb: &resourcev1.Write{Write: &resourcev1.Write_Create{Create: &resourcev1.CreateRequest{
		Ref: k.Ref(obj.GetNamespace(), "", ""), Object: a, Options: &o.rpc,
	}}}}
}

// UpdateWrite returns the write that replaces obj, or one of its subresources (see
// [Subresource]). It is conditional on the resourceVersion of obj, if that is set.
func UpdateWrite(obj Object, opts ...WriteOption) Write {
	k, o := KindOf(obj), (*Client)(nil).writeOptions(opts)
	a, err := Encode(obj)
	if err != nil {
		return Write{err: err}
	}
	return Write{kind: k, pb: &resourcev1.Write{Write: &resourcev1.Write_Update{Update: &resourcev1.UpdateRequest{
		Ref: k.Ref(obj.GetNamespace(), obj.GetName(), o.subresource), Object: a, Options: &o.rpc,
	}}}}
}

// StatusWrite returns the write that replaces the status of obj.
func StatusWrite(obj Object, opts ...WriteOption) Write {
	return UpdateWrite(obj, append([]WriteOption{Subresource("status")}, opts...)...)
}

// PatchWrite returns the write that patches an object of T's kind, as [Resource.Patch] does.
func PatchWrite[T Object](namespace, name string, kind types.PatchType, data []byte, opts ...WriteOption) Write {
	k, o := mustKind(reflect.TypeFor[T]()), (*Client)(nil).writeOptions(opts)
	pk, err := patchKind(kind)
	if err != nil {
		return Write{err: err}
	}
	return Write{kind: k, pb: &resourcev1.Write{Write: &resourcev1.Write_Patch{Patch: &resourcev1.PatchRequest{
		Ref: k.Ref(namespace, name, o.subresource), Kind: pk, Patch: data, Options: &o.rpc,
	}}}}
}

// ApplyWrite returns the write that applies the fields that obj sets, as [Resource.Apply]
// does.
func ApplyWrite(obj Object, manager string, opts ...WriteOption) Write {
	k, o := KindOf(obj), (*Client)(nil).writeOptions(opts)
	if k == nil {
		return Write{err: fmt.Errorf("client: %T is not a kind", obj)}
	}
	data, err := Configuration(k, obj)
	if err != nil {
		return Write{err: err}
	}
	o.rpc.FieldManager = manager
	return Write{kind: k, pb: &resourcev1.Write{Write: &resourcev1.Write_Apply{Apply: &resourcev1.ApplyRequest{
		Ref: k.Ref(obj.GetNamespace(), obj.GetName(), o.subresource), Configuration: data, Force: o.force, Options: &o.rpc,
	}}}}
}

// DeleteWrite returns the write that deletes an object of T's kind.
func DeleteWrite[T Object](namespace, name string, opts ...DeleteOption) Write {
	k := mustKind(reflect.TypeFor[T]())
	return Write{kind: k, pb: &resourcev1.Write{Write: &resourcev1.Write_Delete{
		Delete: deleteRequest(nil, k, namespace, name, opts),
	}}}
}

// BindWrite returns the write that assigns pod to a node, provided that the pod still has
// the same uid.
func BindWrite(pod *corev1.Pod, node string) Write {
	k := KindOf(pod)
	a, err := Encode(binding(pod, node))
	if err != nil {
		return Write{err: err}
	}
	return Write{pb: &resourcev1.Write{Write: &resourcev1.Write_Create{Create: &resourcev1.CreateRequest{
		Ref: k.Ref(pod.Namespace, pod.Name, "binding"), Object: a, Options: &resourcev1.WriteOptions{},
	}}}}
}

// Commit performs writes that do not depend on each other and returns one result for each,
// in their order.
//
// A write that fails does not stop the others: look at [WriteResult.Err]. The error of
// Commit itself is about a whole message, of up to [MaxBatch] writes: its writes may or may
// not have happened, those after it were not sent, and the results are those of the
// messages before it.
func (c *Client) Commit(ctx context.Context, writes ...Write) ([]WriteResult, error) {
	return c.commit(ctx, writes, false)
}

// CommitQuietly is [Client.Commit] without objects in the results, which costs less.
func (c *Client) CommitQuietly(ctx context.Context, writes ...Write) ([]WriteResult, error) {
	return c.commit(ctx, writes, true)
}

func (c *Client) commit(ctx context.Context, writes []Write, quiet bool) ([]WriteResult, error) {
	results := make([]WriteResult, 0, len(writes))
	for len(writes) > 0 {
		n := min(len(writes), MaxBatch)
		batch := &resourcev1.CommitRequest{Writes: make([]*resourcev1.Write, n), OmitObjects: quiet}
		for i, w := range writes[:n] {
			if w.err != nil {
				return results, fmt.Errorf("write %d: %w", i, w.err)
			}
			c.own(w.pb)
			batch.Writes[i] = w.pb
		}
		resp, err := c.rpc.Commit(ctx, batch)
		if err != nil {
			return results, fromRPC(ctx, "commit", err)
		}
		if len(resp.GetResults()) != n {
			return results, fmt.Errorf("client: %d results for %d writes", len(resp.GetResults()), n)
		}
		for i, r := range resp.GetResults() {
			results = append(results, result(writes[i], r, quiet))
		}
		writes = writes[n:]
	}
	return results, nil
}

// own sets the client's field manager in a write that has none.
func (c *Client) own(w *resourcev1.Write) {
	var o *resourcev1.WriteOptions
	switch v := w.GetWrite().(type) {
	case *resourcev1.Write_Create:
		o = v.Create.GetOptions()
	case *resourcev1.Write_Update:
		o = v.Update.GetOptions()
	case *resourcev1.Write_Patch:
		o = v.Patch.GetOptions()
	case *resourcev1.Write_Delete:
		o = v.Delete.GetOptions()
	}
	if o != nil && o.FieldManager == "" {
		o.FieldManager = c.manager
	}
}

func result(w Write, r *resourcev1.WriteResult, quiet bool) WriteResult {
	out := WriteResult{ResourceVersion: r.GetResourceVersion()}
	if r.GetStatus() != nil {
		if s := apistatus.FromAny(r.GetStatus()); s != nil {
			out.Err = s
		} else {
			out.Err = errors.New("client: the server refused a write without a readable Status")
		}
		return out
	}
	if quiet || w.kind == nil || r.GetObject() == nil {
		return out
	}
	obj := w.kind.New()
	if out.Err = decode(w.kind, r.GetObject(), obj); out.Err == nil {
		out.Object = obj
	}
	return out
}
