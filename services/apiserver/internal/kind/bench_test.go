package kind_test

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

func podKind(tb testing.TB) *resource.Kind {
	tb.Helper()
	k := resource.NewTable(kind.All()...).ByResource(corev1.SchemeGroupVersion.WithResource("pods"))
	if k == nil {
		tb.Fatal("no pods")
	}
	return k
}

const plainPod = `{"metadata":{"name":"web-0","namespace":"default","labels":{"app":"web"}},"spec":{
	"serviceAccountName":"default","containers":[{"name":"web","image":"nginx:1.27","ports":[{"containerPort":80}],
	"resources":{"requests":{"cpu":"100m","memory":"64Mi"},"limits":{"memory":"64Mi"}},
	"readinessProbe":{"httpGet":{"port":80}},
	"volumeMounts":[{"name":"kube-api-access","mountPath":"/var/run/secrets/kubernetes.io/serviceaccount","readOnly":true}]}],
	"volumes":[{"name":"kube-api-access","projected":{"sources":[{"serviceAccountToken":{"path":"token"}},
	{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},
	{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"fieldPath":"metadata.namespace"}}]}}]}}],
	"tolerations":[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}]}}`

// BenchmarkPlainPod measures a pod of a deployment. Defaults and validation together should take
// less than 10 µs.
func BenchmarkPlainPod(b *testing.B) {
	k := podKind(b)
	pods := make([]*corev1.Pod, 256)
	fresh := func() {
		for i := range pods {
			pods[i] = &corev1.Pod{}
			if err := json.Unmarshal([]byte(plainPod), pods[i]); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if i%len(pods) == 0 {
			b.StopTimer()
			fresh()
			b.StartTimer()
		}
		p := pods[i%len(pods)]
		k.Rules.Default(p)
		k.Rules.PrepareCreate(p)
		if errs := k.Rules.Validate(p); len(errs) > 0 {
			b.Fatal(errs)
		}
	}
}

// TestPlainPodIsCheap compares the cost with that of decoding the same pod on this machine.
func TestPlainPodIsCheap(t *testing.T) {
	k := podKind(t)
	decoding, best := time.Hour, time.Hour
	for range 200 {
		start := time.Now()
		p := &corev1.Pod{}
		if err := json.Unmarshal([]byte(plainPod), p); err != nil {
			t.Fatal(err)
		}
		decoding = min(decoding, time.Since(start))
		start = time.Now()
		k.Rules.Default(p)
		if errs := k.Rules.Validate(p); len(errs) > 0 {
			t.Fatal(errs)
		}
		best = min(best, time.Since(start))
	}
	t.Logf("best of 200: %v, decoding %v", best, decoding)
	if best > decoding/2 {
		t.Errorf("defaults and validation of a plain pod took %v, decoding it %v", best, decoding)
	}
}

// TestDefaultsAreIdempotent applies the defaults twice to every object in every file of cases.
func TestDefaultsAreIdempotent(t *testing.T) {
	table := resource.NewTable(kind.All()...)
	count := 0
	for file, c := range readCases(t) {
		k := table.ByResource(schema.GroupVersionResource{Group: c.Group, Version: c.Version, Resource: c.Resource})
		for _, q := range c.Cases {
			if k.Rules.Default == nil {
				continue
			}
			obj := decode(t, k, change(t, c.Bases[q.Base], q.Set))
			k.Rules.Default(obj)
			once := obj.DeepCopyObject()
			k.Rules.Default(obj)
			count++
			if !reflect.DeepEqual(once, obj) {
				t.Errorf("%s: %s: applying the defaults again changed the object", file, q.name())
			}
		}
	}
	if count < 500 {
		t.Errorf("only %d objects", count)
	}
}

// TestRulesAcceptEmptyObjects runs every rule on an empty object, which any client can send.
func TestRulesAcceptEmptyObjects(t *testing.T) {
	for _, k := range kind.All() {
		obj, old := k.New(), k.New()
		rules := []resource.Rules{k.Rules}
		for _, s := range k.Subresources {
			if s.View != nil {
				rules = append(rules, *s.View)
			}
			if s.Scale != nil {
				s.Scale.Get(obj)
			}
		}
		for _, r := range rules {
			if r.Validate != nil {
				r.Validate(k.New()) // before defaults
			}
			if r.ValidateUpdate != nil {
				r.ValidateUpdate(k.New(), k.New())
			}
			call1(r.Default, obj)
			call1(r.PrepareCreate, obj)
			if r.PrepareUpdate != nil {
				r.PrepareUpdate(obj, old)
			}
			if r.Validate != nil {
				r.Validate(obj)
			}
			if r.ValidateUpdate != nil {
				r.ValidateUpdate(obj, old)
			}
		}
		if k.Cells != nil {
			if n := len(k.Cells(k.New())); n != len(k.Columns) {
				t.Errorf("%s: %d cells for %d columns", k.Resource, n, len(k.Columns))
			}
		}
		if k.Graceful != nil {
			k.Graceful(k.New(), nil)
		}
	}
}

func readCases(t *testing.T) map[string]cases {
	t.Helper()
	all := map[string]cases{}
	for _, file := range caseFiles(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c cases
		if err := yaml.UnmarshalStrict(data, &c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[file] = c
	}
	return all
}

// BenchmarkPlainPodUpdate measures an update of a pod's labels.
func BenchmarkPlainPodUpdate(b *testing.B) {
	k := podKind(b)
	pod := func() *corev1.Pod {
		p := &corev1.Pod{}
		if err := json.Unmarshal([]byte(plainPod), p); err != nil {
			b.Fatal(err)
		}
		k.Rules.Default(p)
		k.Rules.PrepareCreate(p)
		return p
	}
	old, p := pod(), pod()
	p.Labels["a"] = "b"
	b.ReportAllocs()
	for b.Loop() {
		k.Rules.Default(p)
		k.Rules.PrepareUpdate(p, old)
		if errs := k.Rules.ValidateUpdate(p, old); len(errs) > 0 {
			b.Fatal(errs)
		}
		k.Rules.Warnings(p, old)
	}
}
