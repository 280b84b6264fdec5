package watchcache_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/store"
	. "keelson.dev/services/apiserver/internal/watchcache"
)

// realPod returns a pod about as large as a typical running pod.
func realPod(name, node string) *corev1.Pod {
	p := pod("default", name, node, "app", "web", "pod-template-hash", "6d4b75cb6d")
	p.UID = "0b5b7a5e-9e4e-4c52-9f4b-1f3f6d1c6f2a"
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web-6d4b75cb6d", UID: p.UID}}
	p.Spec.Containers = []corev1.Container{{
		Name: "web", Image: "registry.example/web:1.2.3",
		Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}},
		VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
	}}
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.244.1.17", HostIP: "10.89.0.11",
		Conditions: []corev1.PodCondition{{Type: "Ready", Status: "True"}, {Type: "PodScheduled", Status: "True"}, {Type: "Initialized", Status: "True"}}}
	return p
}

func encoded(b *testing.B, p *corev1.Pod) []byte {
	v, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: "Pod", WriteID: "0123456789abcdef", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, p)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// fill writes pods p0 to pn-1, pod i on node i modulo nodes.
func fill(b *testing.B, f *fixture, n, nodes int) {
	var writes []store.Write
	for i := range n {
		writes = append(writes, store.Write{Key: fmt.Sprintf("/registry/pods/default/p%d", i), Value: encoded(b, realPod(fmt.Sprint("p", i), fmt.Sprint("n", i%nodes))), Expect: store.Any})
	}
	if _, err := f.store.Commit(f.ctx, writes); err != nil {
		b.Fatal(err)
	}
	f.fresh()
}

// BenchmarkEvents measures events passing through the cache to different kinds of watchers.
func BenchmarkEvents(b *testing.B) {
	for _, c := range []struct {
		name         string
		nodes, whole int
	}{{"no watchers", 0, 0}, {"1000 nodes", 1000, 0}, {"200 watchers of all", 0, 200}} {
		b.Run(c.name, func(b *testing.B) {
			f := start(b, nil, Config{})
			fill(b, f, 1000, 1000)
			var wg sync.WaitGroup
			var delivered atomic.Int64
			var watchers []*Watcher
			after := f.fresh()
			for i := range c.nodes + c.whole {
				o := WatchOptions{After: after, Buffer: 1 << 30}
				if i < c.nodes {
					o.Field, o.Value = "spec.nodeName", fmt.Sprint("n", i)
				}
				w, err := f.Kind(pods).Watch(o)
				if err != nil {
					b.Fatal(err)
				}
				watchers = append(watchers, w)
				wg.Go(func() {
					for {
						events, err := w.Next(f.ctx)
						if err != nil {
							return
						}
						delivered.Add(int64(len(events)))
					}
				})
			}
			b.ReportAllocs()
			b.ResetTimer()
			const batch = 200
			for i := 0; i < b.N; i += batch {
				fill(b, f, min(batch, b.N-i), 1000)
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			for _, w := range watchers {
				w.Close()
			}
			wg.Wait()
			b.ReportMetric(float64(delivered.Load())/b.Elapsed().Seconds(), "delivered/s")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	e := store.Entry{Key: "/registry/pods/default/p", Value: encoded(b, realPod("p", "n1")), ModRevision: 1234567}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(pods, e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConsistentGet(b *testing.B) {
	f := start(b, nil, Config{})
	fill(b, f, 10000, 1000)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			f.fresh()
			if _, ok := f.Kind(pods).Get("/registry/pods/default/p77"); !ok {
				b.Error("not found")
			}
		}
	})
}

func BenchmarkWalk(b *testing.B) {
	f := start(b, nil, Config{})
	fill(b, f, 5000, 1000)
	for b.Loop() {
		n := 0
		f.Kind(pods).Snapshot().Ascend("/registry/pods/", "", func(*Item) bool { n++; return true })
		if n != 5000 {
			b.Fatal(n)
		}
	}
}
