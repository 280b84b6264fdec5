package fieldmanager

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	kinds "keelson.dev/services/apiserver/internal/resource"
)

// form is how a Go type is represented in JSON.
type form uint8

const (
	scalarForm form = iota // strings, numbers, booleans, bytes
	customForm             // types with a JSON encoding of their own
	structForm
	mapForm
	listForm
)

// plan describes how to walk a Go type. Pointers are dereferenced first.
type plan struct {
	form   form
	typ    reflect.Type
	atomic bool
	fields []fieldPlan // structForm, by JSON name
	elem   *plan       // mapForm, listForm
	set    bool        // listForm: a set of scalars
	keys   []keyPlan   // listForm: associative
	empty  reflect.Value
	equal  func(a, b reflect.Value) bool // customForm
}

type fieldPlan struct {
	name, elem string // "spec", "f:spec"
	index      []int
	omitEmpty  bool
	omitZero   func(reflect.Value) bool
	plan       *plan
}

type keyPlan struct {
	keyInfo
	field *fieldPlan
}

// plans caches the plans of the kinds' Go types.
var plans sync.Map // reflect.Type -> *plan

func planOf(k *kinds.Kind, obj kinds.Object) *plan {
	t := reflect.TypeOf(obj).Elem()
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	c := compiler{made: map[planKey]*plan{}}
	p := c.compile(t, fieldInfo{})
	p.empty = reflect.ValueOf(k.New()).Elem()
	made, _ := plans.LoadOrStore(t, p)
	return made.(*plan)
}

type planKey struct {
	t                     reflect.Type
	atomic, granular, set bool
	keys                  string
}

type compiler struct{ made map[planKey]*plan }

var jsonMarshaler = reflect.TypeFor[json.Marshaler]()

// compile returns the plan of a type that is used in a field described by info.
func (c *compiler) compile(t reflect.Type, info fieldInfo) *plan {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	key := planKey{t: t, atomic: info.atomic, granular: info.granular, set: info.set}
	for _, k := range info.keys {
		key.keys += k.name + ","
	}
	if p := c.made[key]; p != nil {
		return p
	}
	p := &plan{typ: t, atomic: info.atomic, set: info.set}
	c.made[key] = p // before the fields, because types may be recursive
	switch {
	case t.Implements(jsonMarshaler) || reflect.PointerTo(t).Implements(jsonMarshaler):
		p.form, p.equal = customForm, equalOf(t)
	case t.Kind() == reflect.Struct:
		p.form = structForm
		own := schemaTable()[schemaName(t.PkgPath(), t.Name())]
		p.atomic = p.atomic || own.atomic && !info.granular
		c.fields(p, t, nil, own)
		slices.SortFunc(p.fields, func(a, b fieldPlan) int { return strings.Compare(a.name, b.name) })
	case t.Kind() == reflect.Map:
		p.form = mapForm
		p.elem = c.compile(t.Elem(), fieldInfo{})
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		p.form = listForm
		p.elem = c.compile(t.Elem(), fieldInfo{})
		p.atomic = !info.set && len(info.keys) == 0
		for _, k := range info.keys {
			p.keys = append(p.keys, keyPlan{k, p.elem.field(k.name)})
		}
	}
	return p
}

func (p *plan) field(name string) *fieldPlan {
	for i := range p.fields {
		if p.fields[i].name == name {
			return &p.fields[i]
		}
	}
	panic("fieldmanager: " + p.typ.String() + " has no field " + name)
}

// untracked is the set of metadata fields that no manager owns (apimachinery's stripMetaManager).
var untracked = map[string]bool{
	"name": true, "namespace": true, "creationTimestamp": true, "selfLink": true, "uid": true,
	"generation": true, "managedFields": true, "resourceVersion": true,
}

// fields collects a struct's fields, including those of inlined structs.
func (c *compiler) fields(p *plan, t reflect.Type, path []int, info typeInfo) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || f.PkgPath != "" && !f.Anonymous {
			continue
		}
		index := append(slices.Clone(path), i)
		if name == "" && f.Anonymous {
			if f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[metav1.TypeMeta]() {
				c.fields(p, f.Type, index, info)
			}
			continue
		}
		if name == "" {
			name = f.Name
		}
		field := fieldPlan{
			name: name, elem: "f:" + name, index: index,
			omitEmpty: hasOption(options, "omitempty"), plan: c.compile(f.Type, info.fields[name]),
		}
		if hasOption(options, "omitzero") {
			field.omitZero = value.OmitZeroFunc(f.Type)
		}
		p.fields = append(p.fields, field)
	}
}

func hasOption(options, want string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == want {
			return true
		}
	}
	return false
}

// equalOf returns how to compare values of a type with a JSON encoding of its own.
func equalOf(t reflect.Type) func(a, b reflect.Value) bool {
	switch t {
	case reflect.TypeFor[metav1.Time]():
		return func(a, b reflect.Value) bool {
			x, y := a.Interface().(metav1.Time), b.Interface().(metav1.Time)
			return x.IsZero() == y.IsZero() && (x.IsZero() || x.Unix() == y.Unix())
		}
	case reflect.TypeFor[metav1.MicroTime]():
		return func(a, b reflect.Value) bool {
			x, y := a.Interface().(metav1.MicroTime), b.Interface().(metav1.MicroTime)
			return x.IsZero() == y.IsZero() && (x.IsZero() || x.UnixMicro() == y.UnixMicro())
		}
	case reflect.TypeFor[resource.Quantity]():
		return func(a, b reflect.Value) bool {
			x, y := a.Interface().(resource.Quantity), b.Interface().(resource.Quantity)
			return x.Format == y.Format && x.Cmp(y) == 0 || x.String() == y.String()
		}
	case reflect.TypeFor[intstr.IntOrString]():
		return func(a, b reflect.Value) bool {
			return a.Interface().(intstr.IntOrString) == b.Interface().(intstr.IntOrString)
		}
	}
	return func(a, b reflect.Value) bool {
		x, errx := json.Marshal(a.Interface())
		y, erry := json.Marshal(b.Interface())
		return errx == nil && erry == nil && string(x) == string(y)
	}
}
