package storage

import (
	"iter"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Annotations that make a class the default.
const (
	defaultAnnotation     = "storageclass.kubernetes.io/is-default-class"
	betaDefaultAnnotation = "storageclass.beta.kubernetes.io/is-default-class"
)

// PickDefault returns the class for claims that name none: the newest of those marked as default,
// and of several with the same age the first by name. It returns nil if none is marked.
func PickDefault(objs iter.Seq[resource.Object]) resource.Object {
	var found *storagev1.StorageClass
	for o := range objs {
		c, ok := o.(*storagev1.StorageClass)
		if !ok || c.Annotations[defaultAnnotation] != "true" && c.Annotations[betaDefaultAnnotation] != "true" {
			continue
		}
		if found == nil || found.CreationTimestamp.Before(&c.CreationTimestamp) ||
			found.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < found.Name {
			found = c
		}
	}
	if found == nil {
		return nil
	}
	return found
}

// StorageClass returns the row of storageclasses.
func StorageClass() *resource.Kind {
	k := row.Cluster[storagev1.StorageClass, storagev1.StorageClassList](storagev1.SchemeGroupVersion, "storageclasses", "storageclasses")
	k.ReturnsDeleted = true
	k.ShortNames = []string{"sc"}
	k.NoGeneration = true
	k.Columns, k.Cells = columns(), cells
	k.PickDefault = PickDefault
	k.Rules = resource.Typed[*storagev1.StorageClass]{
		Default: func(c *storagev1.StorageClass) {
			if c.ReclaimPolicy == nil {
				policy := corev1.PersistentVolumeReclaimDelete
				c.ReclaimPolicy = &policy
			}
			if c.VolumeBindingMode == nil {
				mode := storagev1.VolumeBindingImmediate
				c.VolumeBindingMode = &mode
			}
		},
		Warnings:       func(c, _ *storagev1.StorageClass) []string { return warnings(c) },
		Validate:       validate,
		ValidateUpdate: validateUpdate,
	}.Rules()
	return k
}

// Kubernetes' limits on parameters.
const (
	maxParameters     = 512
	maxParameterBytes = 256 << 10
)

// warnings returns warnings about deprecated labels of nodes.
func warnings(c *storagev1.StorageClass) []string {
	var list []string
	for i := range c.AllowedTopologies {
		for j, e := range c.AllowedTopologies[i].MatchLabelExpressions {
			if why := check.DeprecatedNodeLabel(e.Key); why != "" {
				list = append(list, field.NewPath("allowedTopologies").Index(i).Child("matchLabelExpressions").Index(j).Child("key").String()+": "+why)
			}
		}
	}
	return list
}

func validate(c *storagev1.StorageClass) field.ErrorList {
	var e check.Errors
	if c.Provisioner == "" {
		e.Required(field.NewPath("provisioner"), "")
	} else {
		name := strings.ToLower(c.Provisioner)
		e.Messages(field.NewPath("provisioner"), "", name, check.LabelKey(name))
	}
	validateParameters(&e, c.Parameters)
	if c.ReclaimPolicy != nil && *c.ReclaimPolicy != "" {
		supported(&e, "reclaimPolicy", *c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)
	}
	if c.VolumeBindingMode == nil {
		e.Required(field.NewPath("volumeBindingMode"), "")
	} else {
		supported(&e, "volumeBindingMode", *c.VolumeBindingMode, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)
	}
	for i, t := range c.AllowedTopologies {
		at := field.NewPath("allowedTopologies").Index(i)
		validateTopology(&e, t, at)
		for _, other := range c.AllowedTopologies[:i] {
			if equality.Semantic.DeepEqual(t, other) {
				e.Duplicate(at.Child("matchLabelExpressions"), "")
				break
			}
		}
		if len(t.MatchLabelExpressions) == 0 {
			e.Duplicate(at.Child("matchLabelExpressions"), "") // Kubernetes treats an empty term as a duplicate
		}
	}
	return e.List
}

func supported[T ~string](e *check.Errors, name string, value T, allowed ...T) {
	for _, a := range allowed {
		if value == a {
			return
		}
	}
	e.List = append(e.List, field.NotSupported(field.NewPath(name), value, allowed))
}

func validateParameters(e *check.Errors, parameters map[string]string) {
	p := field.NewPath("parameters")
	if len(parameters) > maxParameters {
		e.List = append(e.List, field.TooLong(p, "Provisioner Parameters exceeded max allowed", maxParameters))
	}
	size := 0
	for key, value := range parameters {
		if key == "" {
			e.Invalid(p, key, "field can not be empty.")
		}
		size += len(key) + len(value)
	}
	if size > maxParameterBytes {
		e.List = append(e.List, field.TooLong(p, "", maxParameterBytes))
	}
}

func validateTopology(e *check.Errors, t corev1.TopologySelectorTerm, p *field.Path) {
	var keys check.Seen
	for i, x := range t.MatchLabelExpressions {
		at := p.Child("matchLabelExpressions").Index(i)
		if len(x.Values) == 0 {
			e.Required(at.Child("values"), "")
		}
		var values check.Seen
		for j, v := range x.Values {
			if values.Add(v) {
				e.Duplicate(at.Child("values").Index(j), v)
			}
		}
		e.Messages(at, "key", x.Key, check.LabelKey(x.Key))
		if keys.Add(x.Key) {
			e.Duplicate(at.Child("key"), x.Key)
		}
	}
}

func validateUpdate(c, old *storagev1.StorageClass) field.ErrorList {
	e := check.Errors{List: validate(c)}
	same := func(name string, equal bool) {
		if !equal {
			e.Invalid(field.NewPath(name), nil, check.Immutable)
		}
	}
	same("parameters", maps.Equal(c.Parameters, old.Parameters))
	same("provisioner", c.Provisioner == old.Provisioner)
	same("reclaimPolicy", equality.Semantic.DeepEqual(c.ReclaimPolicy, old.ReclaimPolicy))
	same("volumeBindingMode", equality.Semantic.DeepEqual(c.VolumeBindingMode, old.VolumeBindingMode))
	return e.List
}

func columns() []metav1.TableColumnDefinition {
	class := storagev1.StorageClass{}
	return []metav1.TableColumnDefinition{
		column.Text("Provisioner", column.Doc(class, "provisioner")),
		column.Text("ReclaimPolicy", column.Doc(class, "reclaimPolicy")),
		column.Text("VolumeBindingMode", column.Doc(class, "volumeBindingMode")),
		column.Text("AllowVolumeExpansion", column.Doc(class, "allowVolumeExpansion")),
		column.AgeColumn(),
	}
}

func cells(o resource.Object) []any {
	c := o.(*storagev1.StorageClass)
	reclaim, binding := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingImmediate
	if c.ReclaimPolicy != nil {
		reclaim = *c.ReclaimPolicy
	}
	if c.VolumeBindingMode != nil {
		binding = *c.VolumeBindingMode
	}
	return []any{
		c.Provisioner, string(reclaim), string(binding), c.AllowVolumeExpansion != nil && *c.AllowVolumeExpansion,
		column.Age(c.CreationTimestamp),
	}
}
