package client

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// MaxBatch is the largest number of writes in one message; Commit cuts longer
// batches into several, one after the other.
const MaxBatch = 1000

// Write is one write of a batch. The functions of this file make them.
type Write struct {
	pb *resourcev1.Write
	// kind is what the answer holds; nil where it holds no object.
	kind *Kind
	err  error
}

// WithTraceparent gives the write a trace of its own; without, it belongs to the
// batch's.
func (w Write) WithTraceparent(traceparent string) Write {
	if w.pb != nil {
		w.pb.Traceparent = traceparent
	}
	return w
}

// WriteResult is the verdict on one write.
type WriteResult struct {
	// Object as it is now, if the write succeeded and objects were asked for.
	Object Object
	// ResourceVersion after the write.
	ResourceVersion string
	// Err is set if the write failed.
	Err error
}

// CreateWrite creates an object.
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

// UpdateWrite replaces an object or one of its subresources.
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

// StatusWrite replaces an object's status.
func StatusWrite(obj Object, opts ...WriteOption) Write {
	return UpdateWrite(obj, append([]WriteOption{Subresource("status")}, opts...)...)
}

// PatchWrite patches an object of T's kind.
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

// ApplyWrite applies the fields that obj sets.
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

// DeleteWrite deletes an object of T's kind.
func DeleteWrite[T Object](namespace, name string, opts ...DeleteOption) Write {
	k := mustKind(reflect.TypeFor[T]())
	return Write{kind: k, pb: &resourcev1.Write{Write: &resourcev1.Write_Delete{
		Delete: deleteRequest(nil, k, namespace, name, opts),
	}}}
}

// BindWrite assigns a pod to a node, if it is still the pod of that uid.
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

// Commit carries out independent writes and returns one result for each, in
// their order. Its error is that of the batch as a whole: some of its writes may
// then have happened, and results are those of the messages before the failed
// one.
func (c *Client) Commit(ctx context.Context, writes ...Write) ([]WriteResult, error) {
	return c.commit(ctx, writes, false)
}

// CommitQuietly is Commit without the objects in the results.
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

// own fills in the client's field manager where the write names none.
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
		if s := decodeStatus(r.GetStatus()); s != nil {
			out.Err = s
		} else {
			out.Err = errors.New("client: a write failed with a status that is none")
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
