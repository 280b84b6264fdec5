package fieldmanager

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"keelson.dev/services/apiserver/internal/resource"
)

// Apply merges a configuration into w.Old (nil if the object does not exist yet) and returns the
// new object with its managed fields. w.Object is not used.
//
// Errors are Kubernetes': a Conflict with a cause for each field that another manager owns, or a
// BadRequest for a wrong version.
func (f *Fields) Apply(w Write, configuration map[string]any, force bool) (resource.Object, error) {
	manager, err := f.machinery.manager(w.Kind, w.Subresource)
	if err != nil {
		return nil, err
	}
	live := w.Kind.New()
	if w.Old != nil {
		copied, ok := w.Old.DeepCopyObject().(resource.Object)
		if !ok {
			return nil, fmt.Errorf("%T cannot be copied", w.Old)
		}
		live = copied
	}
	live.GetObjectKind().SetGroupVersionKind(w.Kind.GVK)
	applied, err := manager.Apply(live, &unstructured.Unstructured{Object: configuration}, w.Manager, force)
	if err != nil {
		return nil, applyError(err)
	}
	obj, ok := applied.(resource.Object)
	if !ok {
		return nil, fmt.Errorf("apply: expected a resource.Object, got %T", applied)
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return obj, nil
}

// applyError returns Kubernetes' Status for plain errors of the machinery, such as an undeclared
// field: code 500 with the error's text.
func applyError(err error) error {
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		return status
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error(),
	}}
}

// machinery holds apimachinery's field managers, one for each door. It is loaded when it is first
// needed, because its schema takes 18 MB and a tenth of a second.
type machinery struct {
	table    *resource.Table
	once     sync.Once
	scheme   *runtime.Scheme
	types    managedfields.TypeConverter
	scales   managedfields.TypeConverter
	managers sync.Map // door -> *managedfields.FieldManager
}

func (m *machinery) load() {
	m.scheme = runtime.NewScheme()
	for _, k := range m.table.Kinds() {
		m.scheme.AddKnownTypeWithName(k.GVK, k.New())
	}
	m.scheme.AddKnownTypeWithName(scaleKind.GVK, scaleKind.New())
	m.types = applyconfigurations.NewTypeConverter(m.scheme)
	parser, err := typed.NewParser(scaleSchema)
	if err != nil { // the schema is a constant
		panic(err)
	}
	m.scales = managedfields.NewSchemeTypeConverter(m.scheme, parser)
}

func (m *machinery) manager(k *resource.Kind, subresource string) (*managedfields.FieldManager, error) {
	m.once.Do(m.load)
	key := door{k.GVR().GroupResource(), subresource}
	if fm, ok := m.managers.Load(key); ok {
		return fm.(*managedfields.FieldManager), nil
	}
	c, types := &conversion{kind: k}, m.types
	if k == scaleKind {
		types = m.scales
	}
	fm, err := managedfields.NewDefaultFieldManager(types, c, c, m.scheme, k.GVK, k.GVK.GroupVersion(), subresource,
		filters(k, subresource))
	if err != nil {
		return nil, err
	}
	made, _ := m.managers.LoadOrStore(key, fm)
	return made.(*managedfields.FieldManager), nil
}

// filters returns the fields to reset in the form that the machinery takes.
func filters(k *resource.Kind, subresource string) map[fieldpath.APIVersion]fieldpath.Filter {
	version := fieldpath.APIVersion(k.GVK.GroupVersion().String())
	if owned := ownedOnly(k, subresource); owned != nil {
		matchers := make([]*fieldpath.SetMatcher, len(owned))
		for i, path := range owned {
			var parts []any
			for part := range strings.SplitSeq(path, ".") {
				if part == anyItem {
					parts = append(parts, fieldpath.MatchAnyPathElement())
				} else {
					parts = append(parts, part)
				}
			}
			matchers[i] = fieldpath.MakePrefixMatcherOrDie(parts...)
		}
		return map[fieldpath.APIVersion]fieldpath.Filter{version: fieldpath.NewIncludeMatcherFilter(matchers...)}
	}
	set := fieldpath.NewSet()
	for _, path := range resetFields(k, subresource) {
		var parts []any
		for part := range strings.SplitSeq(path, ".") {
			parts = append(parts, part)
		}
		set.Insert(fieldpath.MakePathOrDie(parts...))
	}
	return map[fieldpath.APIVersion]fieldpath.Filter{
		version: fieldpath.NewExcludeSetFilter(set),
	}
}

// conversion implements the machinery's version conversion. Each kind has a single version, and
// merged objects are returned untyped. The pipeline sets the defaults later.
type conversion struct{ kind *resource.Kind }

func (c *conversion) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	gvk, ok := target.KindForGroupVersionKinds([]schema.GroupVersionKind{c.kind.GVK})
	if !ok || gvk != c.kind.GVK {
		return nil, runtime.NewNotRegisteredErrForTarget("keelson", nil, target)
	}
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		in.GetObjectKind().SetGroupVersionKind(gvk) // a copy that belongs to the machinery
		return in, nil
	}
	obj := c.kind.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, obj); err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	return obj, nil
}

func (c *conversion) Convert(in, out, _ any) error {
	return fmt.Errorf("cannot convert %T to %T", in, out)
}

func (c *conversion) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (c *conversion) Default(runtime.Object) {}
