package pipeline_test

import (
	"strconv"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// benchPod returns the pod that the benchmarks write, of the usual size of a Deployment's pods.
func benchPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"app": "bench", "tier": "front"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "registry.example.com/bench:1",
			Env:   []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
			Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: apiresource.MustParse("100m"), corev1.ResourceMemory: apiresource.MustParse("64Mi")}},
		}}},
	}
}

var podGVK = corev1.SchemeGroupVersion.WithKind("Pod")

func podBody(b *testing.B, p *corev1.Pod) pipeline.Body {
	b.Helper()
	data, err := p.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	return pipeline.Body{Data: data, Type: pipeline.Message, GVK: podGVK}
}

func BenchmarkCreate(b *testing.B) {
	f := newFixture(b)
	pods := pipeline.Target{Resource: podGVR, Namespace: "ns"}
	var n atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			body := podBody(b, benchPod("p"+strconv.FormatInt(n.Add(1), 10)))
			if _, err := f.Create(f.ctx, pods, body, pipeline.WriteOptions{FieldManager: "bench"}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	f := newFixture(b)
	var n int
	b.ReportAllocs()
	for b.Loop() {
		writes := make([]pipeline.Write, 100)
		for i := range writes {
			n++
			writes[i] = pipeline.Write{Verb: "create", Target: pipeline.Target{Resource: podGVR, Namespace: "ns"},
				Body: podBody(b, benchPod("p"+strconv.Itoa(n))), Options: pipeline.WriteOptions{FieldManager: "bench"}}
		}
		for _, r := range f.Commit(f.ctx, writes) {
			if r.Err != nil {
				b.Fatal(r.Err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/write")
}

func BenchmarkGet(b *testing.B) {
	f := newFixture(b)
	f.mustCreate(benchPod("p"))
	target := pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p"}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := f.Get(f.ctx, target, pipeline.GetOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkMergePatch(b *testing.B) {
	f := newFixture(b)
	f.mustCreate(benchPod("p"))
	target := pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p"}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		body := pipeline.Body{Data: []byte(`{"metadata":{"annotations":{"n":"` + strconv.Itoa(n) + `"}}}`), Type: pipeline.JSON}
		if _, err := f.Patch(f.ctx, target, types.MergePatchType, body, pipeline.WriteOptions{FieldManager: "bench"}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStatusPatch(b *testing.B) {
	f := newFixture(b)
	f.mustCreate(benchPod("p"))
	target := pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p", Subresource: "status"}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		body := pipeline.Body{Data: []byte(`{"status":{"conditions":[{"type":"Ready","status":"True","message":"` + strconv.Itoa(n) + `"}],"phase":"Running"}}`), Type: pipeline.JSON}
		if _, err := f.Patch(f.ctx, target, types.StrategicMergePatchType, body, pipeline.WriteOptions{FieldManager: "bench"}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBind(b *testing.B) {
	f := newFixture(b)
	bind, err := binding("", "node").Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		f.mustCreate(benchPod("p" + strconv.Itoa(i)))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		target := pipeline.Target{Resource: podGVR, Namespace: "ns", Name: "p" + strconv.Itoa(i), Subresource: "binding"}
		body := pipeline.Body{Data: bind, Type: pipeline.Message, GVK: corev1.SchemeGroupVersion.WithKind("Binding")}
		if _, err := f.Create(f.ctx, target, body, pipeline.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList5000(b *testing.B) {
	f := newFixture(b)
	for i := range 5000 {
		f.mustCreate(benchPod("p" + strconv.Itoa(i)))
	}
	b.ReportAllocs()
	for b.Loop() {
		list, err := f.List(f.ctx, pipeline.Target{Resource: podGVR}, pipeline.ListOptions{})
		if err != nil || len(list.Items) != 5000 {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeStored measures decoding a stored object that this program wrote, one that
// another program wrote with all defaults, and one that lacks some defaults.
func BenchmarkDecodeStored(b *testing.B) {
	f := newFixture(b)
	complete := f.mustCreate(benchPod("p"))
	complete.SetResourceVersion("")
	kind := f.Table().ByResource(podGVR)
	for _, c := range []struct {
		name    string
		obj     resource.Object
		version uint64
	}{{"own", complete, resource.DefaultsVersion}, {"complete", complete, resource.DefaultsVersion + 1}, {"incomplete", benchPod("p"), 0}} {
		value, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: "Pod", Defaults: c.version}, c.obj)
		if err != nil {
			b.Fatal(err)
		}
		e := store.Entry{Key: "/registry/pods/ns/p", Value: value, ModRevision: 1234567}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := watchcache.Decode(kind, e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDelete(b *testing.B) {
	f := newFixture(b)
	var n int
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		n++
		p := benchPod("p" + strconv.Itoa(n))
		if _, err := f.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns"}, podBody(b, p), pipeline.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := f.Delete(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: p.Name}, pipeline.DeleteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
