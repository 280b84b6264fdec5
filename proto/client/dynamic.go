package client

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Unstructured is an object of any built-in kind as a tree of maps, slices and values, as its JSON
// is. Its apiVersion and kind are set.
type Unstructured struct {
	unstructured.Unstructured

	kind *Kind
}

// Dynamic returns access to the collection that gvr names, for programs that learn the kind at run
// time. All methods of a [Resource] work, and so does a [Cache] of it. An object to create is made
// with [NewUnstructured]. It fails if the kind is not built in ([Kinds]).
func Dynamic(c *Client, gvr schema.GroupVersionResource) (Resource[*Unstructured], error) {
	k := KindForResource(gvr)
	if k == nil {
		return Resource[*Unstructured]{}, fmt.Errorf("client: %s is not built in", gvr)
	}
	return Resource[*Unstructured]{c: c, kind: k, make: func() *Unstructured { return &Unstructured{kind: k} }}, nil
}

// NewUnstructured returns an object of kind k with the content of a manifest, which it keeps.
// apiVersion and kind are set if they are missing, and must otherwise be those of k.
func NewUnstructured(k *Kind, content map[string]any) (*Unstructured, error) {
	u := &Unstructured{kind: k}
	u.SetUnstructuredContent(content)
	if u.Object == nil {
		u.Object = map[string]any{}
	}
	if u.GetAPIVersion() == "" && u.GetKind() == "" {
		u.SetGroupVersionKind(k.GVK)
	}
	if got := u.GroupVersionKind(); got != k.GVK {
		return nil, fmt.Errorf("client: a %s is no %s", got, k.GVK)
	}
	return u, nil
}

// DeepCopyObject implements runtime.Object.
func (u *Unstructured) DeepCopyObject() runtime.Object {
	return &Unstructured{Unstructured: *u.DeepCopy(), kind: u.kind}
}

// Marshal implements Object: the encoding is Kubernetes' protobuf. Fields that the kind does not have
// are an error.
func (u *Unstructured) Marshal() ([]byte, error) {
	if u.kind == nil {
		return nil, fmt.Errorf("client: an Unstructured without a kind: use NewUnstructured")
	}
	obj := u.kind.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, obj, true); err != nil {
		return nil, err
	}
	return obj.Marshal()
}

// Unmarshal implements Object.
func (u *Unstructured) Unmarshal(data []byte) error {
	if u.kind == nil {
		return fmt.Errorf("client: an Unstructured without a kind: use NewUnstructured")
	}
	obj := u.kind.New()
	if err := obj.Unmarshal(data); err != nil {
		return err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return err
	}
	u.Object = content
	u.SetGroupVersionKind(u.kind.GVK)
	return nil
}
