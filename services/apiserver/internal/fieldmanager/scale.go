package fieldmanager

import (
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"keelson.dev/services/apiserver/internal/resource"
)

// scaleKind is what the machinery needs to know about a Scale.
var scaleKind = &resource.Kind{
	GVK:      autoscalingv1.SchemeGroupVersion.WithKind("Scale"),
	Resource: "scales",
	New:      func() resource.Object { return &autoscalingv1.Scale{} },
}

// scaleSchema is the schema of a Scale, which client-go's schema lacks. What an applier owns of
// the metadata is dropped: only the replicas belong to the object.
const scaleSchema = `types:
- name: io.k8s.api.autoscaling.v1.Scale
  map:
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: kind, type: {scalar: string}}
    - {name: metadata, type: {namedType: any}}
    - {name: spec, type: {namedType: spec}}
    - {name: status, type: {namedType: status}}
- name: spec
  map:
    fields:
    - {name: replicas, type: {scalar: numeric}}
- name: status
  map:
    fields:
    - {name: replicas, type: {scalar: numeric}}
    - {name: selector, type: {scalar: string}}
- name: any
  scalar: untyped
  list:
    elementType: {namedType: leaf}
    elementRelationship: atomic
  map:
    elementType: {namedType: any}
    elementRelationship: separable
- name: leaf
  scalar: untyped
  list:
    elementType: {namedType: leaf}
    elementRelationship: atomic
  map:
    elementType: {namedType: leaf}
    elementRelationship: atomic
`

// replicasPath is the path of the replicas in every kind that has a scale.
var replicasPath = fieldpath.MakePathOrDie("spec", "replicas")

// ApplyScale merges a configuration of a Scale into the scale of w.Old. It returns the new Scale
// and the managed fields of the scaled object: the owner of the scale's replicas owns the
// object's.
func (f *Fields) ApplyScale(w Write, scale *autoscalingv1.Scale, configuration map[string]any, force bool) (*autoscalingv1.Scale, []metav1.ManagedFieldsEntry, error) {
	gv := w.Kind.GVK.GroupVersion()
	handler := managedfields.NewScaleHandler(managed(w), gv, managedfields.ResourcePathMappings{gv.String(): replicasPath})
	fields, err := handler.ToSubresource()
	if err != nil {
		return nil, nil, err
	}
	scale = scale.DeepCopy()
	scale.SetManagedFields(fields)
	w.Kind, w.Old = scaleKind, scale
	obj, err := f.Apply(w, configuration, force)
	if err != nil {
		return nil, nil, err
	}
	applied, ok := obj.(*autoscalingv1.Scale)
	if !ok {
		return nil, nil, fmt.Errorf("apply: expected a Scale, got %T", obj)
	}
	if fields, err = handler.ToParent(applied.GetManagedFields()); err != nil {
		return nil, nil, err
	}
	applied.SetManagedFields(nil)
	return applied, fields, nil
}
