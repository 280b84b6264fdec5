package typedpatch

import (
	"encoding/json"
	"math/rand"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/randfill"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

func filler(rng *rand.Rand) *randfill.Filler {
	words := []string{"", "a", "b", "ä", `q"q`, "n\nl"}
	return randfill.New().RandSource(rng).NilChance(.4).NumElements(0, 3).MaxDepth(24).Funcs(
		func(s *string, c randfill.Continue) { *s = words[c.Intn(len(words))] },
		func(t *metav1.Time, c randfill.Continue) { *t = metav1.Unix(int64(c.Intn(3))+1e9, 0) },
		func(t *metav1.MicroTime, c randfill.Continue) {
			*t = metav1.NewMicroTime(time.Unix(int64(c.Intn(3))+1e9, 5000).UTC())
		},
		func(q *apiresource.Quantity, c randfill.Continue) {
			*q = apiresource.MustParse([]string{"1", "1Gi", "500m"}[c.Intn(3)])
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			if *v = intstr.FromInt32(int32(c.Intn(3))); c.Bool() {
				*v = intstr.FromString("x")
			}
		},
		func(n *int32, c randfill.Continue) { *n = int32(c.Intn(9)) },
		func(n *int64, c randfill.Continue) { *n = int64(c.Intn(9)) },
		func(r *runtime.RawExtension, c randfill.Continue) { r.Raw = []byte(`{"a":1}`) },
		func(f *metav1.FieldsV1, c randfill.Continue) { f.SetRawBytes([]byte(`{}`)) },
		func(m *metav1.TypeMeta, c randfill.Continue) {},
	)
}

func text(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestMergeEqualsTheGenericPath compares patches of random differences.
func TestMergeEqualsTheGenericPath(t *testing.T) {
	taken, all := 0, 0
	for _, k := range kind.All() {
		for seed := range int64(12) {
			rng := rand.New(rand.NewSource(seed))
			fill := filler(rng)
			old, next := k.New(), k.New()
			fill.Fill(old)
			fill.Fill(next)
			before := text(t, old)
			patch, err := jsonpatch.CreateMergePatch(before, text(t, next))
			if err != nil {
				t.Fatal(err)
			}
			patch = thin(t, rng, patch)
			patched, err := jsonpatch.MergePatch(before, patch)
			if err != nil {
				t.Fatal(err)
			}
			want, got := k.New(), old.DeepCopyObject().(resource.Object)
			if err := json.Unmarshal(patched, want); err != nil {
				t.Fatal(err)
			}
			all++
			if !Merge(got, patch) {
				continue
			}
			taken++
			if a, b := text(t, want), text(t, got); string(a) != string(b) {
				t.Fatalf("%s seed %d: patch %s\ngot  %s\nwant %s", k.GVK.Kind, seed, patch, b, a)
			}
			if string(text(t, old)) != string(before) {
				t.Fatalf("%s seed %d: the old object was modified", k.GVK.Kind, seed)
			}
		}
	}
	if taken < all/3 {
		t.Errorf("only %d of %d patches were applied", taken, all)
	}
}

// thin keeps a random part of a patch.
func thin(t testing.TB, rng *rand.Rand, patch []byte) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(patch, &m); err != nil {
		t.Fatal(err)
	}
	var walk func(m map[string]any)
	walk = func(m map[string]any) {
		for k, v := range m {
			if rng.Intn(3) > 0 {
				delete(m, k)
			} else if inner, ok := v.(map[string]any); ok {
				walk(inner)
			}
		}
	}
	walk(m)
	return text(t, m)
}

func TestStrategicEqualsTheGenericPath(t *testing.T) {
	taken := 0
	for _, k := range kind.All() {
		for seed := range int64(12) {
			rng := rand.New(rand.NewSource(seed))
			fill := filler(rng)
			old, next := k.New(), k.New()
			fill.Fill(old)
			fill.Fill(next)
			before := text(t, old)
			patch, err := jsonpatch.CreateMergePatch(before, text(t, next))
			if err != nil {
				t.Fatal(err)
			}
			patch = thin(t, rng, patch)
			patched, err := strategicpatch.StrategicMergePatch(before, patch, k.New())
			if err != nil {
				continue
			}
			want, got := k.New(), old.DeepCopyObject().(resource.Object)
			if err := json.Unmarshal(patched, want); err != nil {
				t.Fatal(err)
			}
			if !Strategic(got, patch) {
				continue
			}
			taken++
			if a, b := text(t, want), text(t, got); string(a) != string(b) {
				t.Fatalf("%s seed %d: patch %s\ngot  %s\nwant %s", k.GVK.Kind, seed, patch, b, a)
			}
		}
	}
	if taken < 50 {
		t.Errorf("only %d patches were applied", taken)
	}
}

func TestUnusualPatches(t *testing.T) {
	pod := func() resource.Object {
		for _, k := range kind.All() {
			if k.Resource == "pods" {
				return k.New()
			}
		}
		return nil
	}
	for _, patch := range []string{
		``, `{`, `[]`, `null`, `"x"`, `{"a":1}`, `{"kind":"Pod"}`, `{"Metadata":{}}`,
		`{"metadata":{"name":"a","name":"b"}}`, `{"metadata":{"na\u006de":"b"}}`, `{"metadata":5}`, `{"metadata":{"name":5}}`,
		`{"spec":{"containers":[{"foo":1}]}}`, `{"spec":{"containers":[{"name":null}]}}`, `{"metadata":{"labels":{"a":{}}}}`,
	} {
		if Merge(pod(), []byte(patch)) {
			t.Errorf("%s was applied", patch)
		}
	}
	many := `{"metadata":{"labels":{`
	for c := 'a'; c <= 'z'; c++ {
		many += `"` + string(c) + `":"",`
	}
	for key, taken := range map[string]bool{"0": true, "a": false, "z": false} {
		if Merge(pod(), []byte(many+`"`+key+`":""}}}`)) != taken {
			t.Errorf("with the key %s again, applied is not %t", key, taken)
		}
	}
	for _, patch := range []string{`{"metadata":{"labels":{"$patch":"delete"}}}`, `{"spec":{"containers":[]}}`, `{"metadata":{"finalizers":["a"]}}`} {
		if Strategic(pod(), []byte(patch)) {
			t.Errorf("%s was applied", patch)
		}
	}
}

func FuzzMerge(f *testing.F) {
	f.Add([]byte(`{"metadata":{"labels":{"a":"b","c":null}},"spec":{"replicas":3}}`))
	f.Add([]byte(`{"spec":{"template":{"spec":{"containers":[{"name":"x"}]}}}}`))
	kinds := kind.All()
	f.Fuzz(func(t *testing.T, patch []byte) {
		for _, k := range kinds {
			Merge(k.New(), patch)
			Strategic(k.New(), patch)
		}
	})
}

func BenchmarkMerge(b *testing.B) {
	for _, k := range kind.All() {
		if k.Resource != "pods" {
			continue
		}
		obj := k.New()
		b.ReportAllocs()
		for b.Loop() {
			if !Merge(obj, []byte(`{"metadata":{"annotations":{"n":"1"}}}`)) {
				b.Fatal("the patch was not applied")
			}
		}
	}
}
