package kind_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	k8sresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

// fill sets every field, with one element in each slice and map, so that a round trip shows every
// loss.
func fill(v reflect.Value, depth int) {
	if depth > 9 {
		return
	}
	switch x := v.Addr().Interface().(type) {
	case *metav1.Time:
		*x = metav1.Unix(1700000000, 0)
		return
	case *metav1.MicroTime:
		*x = metav1.NewMicroTime(time.Unix(1700000000, 5000))
		return
	case *k8sresource.Quantity:
		*x = k8sresource.MustParse("7Mi")
		return
	case *metav1.FieldsV1:
		x.SetRawString(`{"f:spec":{}}`)
		return
	case *runtime.RawExtension:
		*x = runtime.RawExtension{Raw: []byte(`{"a":1}`)}
		return
	case *intstr.IntOrString:
		*x = intstr.FromString("25%")
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Name == "TypeMeta" || !v.Field(i).CanSet() {
				continue
			}
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte("bytes"))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(value, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("s")
	case reflect.Int32, reflect.Int64, reflect.Int:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	}
}

func TestRows(t *testing.T) {
	table := resource.NewTable(kind.All()...)
	prefixes := map[string]string{}
	for _, k := range table.Kinds() {
		t.Run(k.Resource+"."+k.GVK.GroupVersion().String(), func(t *testing.T) {
			if k.GVK.Kind == "" || k.GVK.Version == "" || k.Singular == "" || k.Resource == "" {
				t.Fatalf("incomplete row: %+v", k)
			}
			if want := "." + k.GVK.Version + "." + k.GVK.Kind; !strings.HasSuffix(k.ProtoName, want) || !strings.HasPrefix(k.ProtoName, "k8s.io.api.") && !k.Computed {
				t.Errorf("ProtoName %q", k.ProtoName)
			}
			if k.Virtual() != (k.Action != resource.NoAction || k.Forward != nil || k.Computed) {
				t.Errorf("StorePrefix %q, Action %d, Forward %v, Computed %t: exactly one must be set", k.StorePrefix, k.Action, k.Forward, k.Computed)
			}
			if (k.Columns == nil) != (k.Cells == nil) {
				t.Error("Columns without Cells or Cells without Columns")
			}
			if k.StoredAs != nil {
				if other := table.ByKind(k.StoredAs.GVK); other == nil || other.StorePrefix != k.StorePrefix {
					t.Errorf("stored as %v, whose row is %v", k.StoredAs.GVK, other)
				}
			} else if k.StorePrefix != "" {
				if other, twice := prefixes[k.StorePrefix]; twice {
					t.Errorf("prefix %s is also that of %s", k.StorePrefix, other)
				}
				prefixes[k.StorePrefix] = k.Resource
			}
			for name, s := range k.Subresources {
				forms := 0
				for _, set := range []bool{s.View != nil, s.Scale != nil, s.Change != nil, s.Removal != nil, s.Action != resource.NoAction, s.Connect != "", s.Projection != nil} {
					if set {
						forms++
					}
				}
				if forms != 1 || len(s.Verbs) == 0 {
					t.Errorf("subresource %s has %d forms and verbs %v", name, forms, s.Verbs)
				}
				if (s.New != nil) != (s.Posted() || s.Scale != nil) {
					t.Errorf("subresource %s: New must be set exactly if objects of another kind are read or written", name)
				}
				if s.New != nil && s.GVK.Kind != reflect.TypeOf(s.New()).Elem().Name() {
					t.Errorf("subresource %s is said to be %v, and New returns %T", name, s.GVK, s.New())
				}
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	for _, k := range kind.All() {
		t.Run(k.Resource+"."+k.GVK.GroupVersion().String(), func(t *testing.T) {
			obj := k.New()
			fill(reflect.ValueOf(obj).Elem(), 0)
			data, err := obj.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			back := k.New()
			if err := back.Unmarshal(data); err != nil {
				t.Fatal(err)
			}
			if !equality.Semantic.DeepEqual(obj, back) {
				t.Errorf("protobuf changed the object:\n%+v\n%+v", obj, back)
			}
			text, err := json.Marshal(obj)
			if err != nil {
				t.Fatal(err)
			}
			back = k.New()
			if err := json.Unmarshal(text, back); err != nil {
				t.Fatal(err)
			}
			if !equality.Semantic.DeepEqual(obj, back) {
				t.Errorf("JSON changed the object:\n%s", text)
			}
			if k.StoredAs != nil {
				// What two fields say differently, the stored kind says once.
				obj = k.StoredAs.From(k.StoredAs.To(obj))
				if back := k.StoredAs.From(k.StoredAs.To(obj)); !equality.Semantic.DeepEqual(obj, back) {
					t.Errorf("conversion changed the object:\n%+v\n%+v", obj, back)
				}
			}
			for path, get := range k.Fields {
				get(k.New()) // must accept an empty object
				if path == "" {
					t.Error("field without path")
				}
			}
		})
	}
}
