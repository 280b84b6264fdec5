package fieldmanager

import (
	"bytes"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"

	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/apiserver/internal/fieldmanager/schemagen"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/kind/core"
	"keelson.dev/services/apiserver/internal/resource"
)

var converter = applyconfigurations.NewTypeConverter(scheme.Scheme)

// reference returns apimachinery's field manager of a door.
func reference(t testing.TB, k *resource.Kind, subresource string) *managedfields.FieldManager {
	t.Helper()
	fm, err := managedfields.NewDefaultFieldManager(converter, same1{}, same1{}, scheme.Scheme, k.GVK, k.GVK.GroupVersion(), subresource,
		filters(k, subresource))
	if err != nil {
		t.Fatal(err)
	}
	return fm
}

// same1 is a converter for objects with a single version and without defaults.
type same1 struct{}

func (same1) Convert(in, out, context any) error { return fmt.Errorf("no conversion") }
func (same1) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	if _, ok := in.(*unstructured.Unstructured); ok {
		return in, nil
	}
	return in, nil
}
func (same1) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
func (same1) Default(runtime.Object) {}

// random returns a filler of objects with short, colliding values, so that keys are duplicated
// and fields match occasionally.
func random(rng *rand.Rand) *randfill.Filler {
	words := []string{"", "a", "b", "ab", "x<y", "ä", `q"q`, "back\\slash", "c\nd"}
	return randfill.New().RandSource(rng).NilChance(.4).NumElements(0, 3).MaxDepth(24).Funcs(
		func(s *string, c randfill.Continue) { *s = words[c.Intn(len(words))] },
		func(b *[]byte, c randfill.Continue) { *b = []byte(words[c.Intn(len(words))]) },
		func(t *metav1.Time, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.Unix(int64(c.Intn(3))*1000+1e9, 0)
			}
		},
		func(t *metav1.MicroTime, c randfill.Continue) {
			if c.Bool() {
				*t = metav1.NewMicroTime(time.Unix(int64(c.Intn(3))+1e9, 5000))
			}
		},
		func(q *apiresource.Quantity, c randfill.Continue) {
			*q = apiresource.MustParse([]string{"1", "1000m", "1Gi", "1024Mi", "0", "500m"}[c.Intn(6)])
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			if *v = intstr.FromInt32(int32(c.Intn(3))); c.Bool() {
				*v = intstr.FromString(words[c.Intn(len(words))])
			}
		},
		func(n *int32, c randfill.Continue) { *n = int32(c.Intn(12)) },
		func(n *int64, c randfill.Continue) { *n = int64(c.Intn(12)) },
		func(n *int, c randfill.Continue) { *n = c.Intn(3) },
		func(r *runtime.RawExtension, c randfill.Continue) { r.Raw = []byte(`{"a":1}`) },
		func(f *metav1.FieldsV1, c randfill.Continue) {},
		func(m *[]metav1.ManagedFieldsEntry, c randfill.Continue) { *m = nil },
	)
}

// mutate replaces parts of obj with those of another random object.
func mutate(rng *rand.Rand, obj, other reflect.Value) {
	if obj.Kind() == reflect.Pointer {
		if obj.IsNil() || other.IsNil() {
			obj.Set(other)
			return
		}
		mutate(rng, obj.Elem(), other.Elem())
		return
	}
	if obj.Kind() != reflect.Struct || obj.Type() == reflect.TypeFor[metav1.Time]() || obj.Type() == reflect.TypeFor[apiresource.Quantity]() {
		obj.Set(other)
		return
	}
	for i := range obj.NumField() {
		if obj.Field(i).CanSet() && rng.Intn(4) == 0 {
			mutate(rng, obj.Field(i), other.Field(i))
		}
	}
}

func TestTrackMatchesApimachinery(t *testing.T) {
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for _, k := range kind.All() {
		probe := k.New()
		probe.GetObjectKind().SetGroupVersionKind(k.GVK)
		if _, err := converter.ObjectToTyped(probe); err != nil {
			continue
		}
		t.Run(k.Resource+"."+k.GVK.Group, func(t *testing.T) {
			t.Parallel()
			refs := map[string]*managedfields.FieldManager{}
			doors := []string{""}
			for name, s := range k.Subresources {
				if s.View != nil {
					doors = append(doors, name)
				}
			}
			for _, d := range doors {
				refs[d] = reference(t, k, d)
			}
			compared := 0
			for seed := range int64(rounds) {
				compared += compareRun(t, k, refs, doors, seed)
			}
			if compared < rounds {
				t.Errorf("only %d writes of %d objects were compared", compared, rounds)
			}
		})
	}
}

// compareRun creates an object and changes it a few times, as several managers and through
// several doors, with both implementations.
func compareRun(t *testing.T, k *resource.Kind, refs map[string]*managedfields.FieldManager, doors []string, seed int64) (compared int) {
	t.Helper()
	rng := rand.New(rand.NewSource(seed))
	filler := random(rng)
	fields := New(nil)
	fill := func() resource.Object {
		o := k.New()
		filler.Fill(o)
		o.GetObjectKind().SetGroupVersionKind(k.GVK)
		return o
	}
	var old resource.Object
	now := time.Now()
	for step := range 4 {
		door, manager := "", []string{"a", "b", ""}[rng.Intn(3)]
		obj := fill()
		if old != nil {
			door = doors[rng.Intn(len(doors))]
			other := obj
			obj = old.DeepCopyObject().(resource.Object)
			mutate(rng, reflect.ValueOf(obj), reflect.ValueOf(other))
			obj.SetUID(old.GetUID())
			obj.SetManagedFields(old.GetManagedFields())
			switch rng.Intn(6) {
			case 0:
				obj.SetManagedFields(nil)
			case 1:
				obj.SetManagedFields([]metav1.ManagedFieldsEntry{})
			}
		}
		obj.SetUID("u")
		want := obj.DeepCopyObject().(resource.Object)
		live := runtime.Object(k.New())
		live.GetObjectKind().SetGroupVersionKind(k.GVK)
		if old != nil {
			live = old.DeepCopyObject()
		}
		updated, err := refs[door].Update(live, want, manager)
		if err != nil {
			return compared // an object that the machinery cannot handle (no key is set)
		}
		got := obj
		fields.Track(Write{Kind: k, Subresource: door, Old: old, Object: got, Manager: manager, Now: now})
		w, g := describe(updated.(metav1.Object).GetManagedFields()), describe(got.GetManagedFields())
		if w != g {
			at := 0
			for at < len(w) && at < len(g) && w[at] == g[at] {
				at++
			}
			cut := func(s string) string { return s[max(0, at-150):min(len(s), at+150)] }
			t.Fatalf("seed %d step %d door %q manager %q:\nwant …%s\ngot  …%s", seed, step, door, manager, cut(w), cut(g))
		}
		old = got
		compared++
	}
	return compared
}

// describe formats entries without their times, which depend on the clock.
func describe(entries []metav1.ManagedFieldsEntry) string {
	lines := make([]string, len(entries))
	for i, e := range entries {
		lines[i] = fmt.Sprintf("%s %s %s %s %s %v", e.Manager, e.Operation, e.APIVersion, e.Subresource, e.FieldsV1.GetRawString(), e.Time != nil)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestSchemaIsCurrent(t *testing.T) {
	var b bytes.Buffer
	if err := schemagen.Write(&b); err != nil {
		t.Fatal(err)
	}
	if b.String() != schemaText {
		t.Error("schema.txt is out of date: run `go generate`")
	}
}

// TestManyManagers checks that the oldest of many managers are merged as in apimachinery.
func TestManyManagers(t *testing.T) {
	k := core.ConfigMap()
	ref, fields := reference(t, k, ""), New(nil)
	var old resource.Object
	now := time.Now().Truncate(time.Second)
	for i := range 25 {
		obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "ns", UID: "u"}, Data: map[string]string{}}
		obj.SetGroupVersionKind(k.GVK)
		if old != nil {
			obj = old.DeepCopyObject().(*corev1.ConfigMap)
		}
		obj.Data[fmt.Sprintf("k%02d", i)] = "v"
		obj.Data["shared"] = fmt.Sprint(i)
		live := runtime.Object(k.New())
		live.GetObjectKind().SetGroupVersionKind(k.GVK)
		if old != nil {
			live = old.DeepCopyObject()
		}
		manager := fmt.Sprintf("m%02d", i)
		want, err := ref.Update(live, obj.DeepCopy(), manager)
		if err != nil {
			t.Fatal(err)
		}
		fields.Track(Write{Kind: k, Old: old, Object: obj, Manager: manager, Now: now})
		w, g := want.(metav1.Object).GetManagedFields(), obj.GetManagedFields()
		if describe(w) != describe(g) {
			t.Fatalf("write %d:\nwant %s\ngot  %s", i, describe(w), describe(g))
		}
		if len(g) > maxUpdaters+1 {
			t.Fatalf("write %d: %d managers", i, len(g))
		}
		// Set times one second apart in both, so that they agree on which entry is the oldest.
		for j := range g {
			at := metav1.NewTime(now.Add(-time.Hour + time.Duration(i-len(g)+j)*time.Second))
			if g[j].Manager == manager {
				at = metav1.NewTime(now.Add(time.Duration(i-100) * time.Second))
			} else if g[j].Time.Time.Before(now) {
				continue
			}
			g[j].Time = &at
		}
		old = obj
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"x\"}":{".":{},"f:image":{}}},"f:x":{"v:5":{}}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x := newTree()
		defer x.release()
		if !x.parse(string(data)) {
			return
		}
		text := x.appendJSON(nil, member)
		y := newTree()
		defer y.release()
		if !y.parse(string(text)) {
			t.Fatalf("%q is encoded as %q, which cannot be parsed", data, text)
		}
		if again := y.appendJSON(nil, member); string(again) != string(text) {
			t.Fatalf("%q is encoded as %q and then as %q", data, text, again)
		}
		x.subtract(0, y, 0)
		x.union(0, y, 0, member)
	})
}

// TestHostileFields tracks over managed fields that a client has made up.
func TestHostileFields(t *testing.T) {
	k := core.ConfigMap()
	for _, raw := range []string{"", "{", "5", `{"x":{}}`, `{"f:a":5}`, strings.Repeat(`{"f:a":`, 5000)} {
		obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "u"}, Data: map[string]string{"a": "b"}}
		entry := metav1.ManagedFieldsEntry{Manager: "x", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{}}
		entry.FieldsV1.SetRawBytes([]byte(raw))
		obj.ManagedFields = []metav1.ManagedFieldsEntry{entry}
		old := obj.DeepCopy()
		old.Data = nil
		New(nil).Track(Write{Kind: k, Old: old, Object: obj, Manager: "m", Now: time.Now()})
		if m := obj.ManagedFields; len(m) != 1 || m[0].Manager != "m" {
			t.Errorf("%q: %+v", raw, m)
		}
	}
}
