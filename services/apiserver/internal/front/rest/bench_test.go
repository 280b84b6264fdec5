package rest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind"
)

// sink is a ResponseWriter that discards everything.
type sink struct {
	header http.Header
	n      int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { s.n += len(p); return len(p), nil }
func (s *sink) Flush()                      {}

func samplePod(i int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("pod-%d", i), UID: "0b4b5fae-6dbc-4b8e-a1d1-7d3e9e8d2f11",
			Labels: map[string]string{"app": "web", "tier": "front"}, Annotations: map[string]string{"note": "some text"},
		},
		Spec: corev1.PodSpec{
			NodeName:   "node-1",
			Containers: []corev1.Container{{Name: "c", Image: "example.test/image:1", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.244.0.7", Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue}, {Type: corev1.ContainersReady, Status: corev1.ConditionTrue},
		}},
	}
}

func benchmarkGet(b *testing.B, path, accept string, pods int) {
	f := newFake(kind.All()...)
	pod := f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	for i := range pods {
		f.put(pod, samplePod(i))
	}
	h := New(Config{API: f, Authn: fakeAuthn{}})
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	r.Header.Set("Authorization", "Bearer admin")
	r.Header.Set("User-Agent", "bench/1")
	b.ReportAllocs()
	for b.Loop() {
		f.calls = f.calls[:0]
		h.ServeHTTP(&sink{header: http.Header{}}, r)
	}
}

func BenchmarkGetProtobuf(b *testing.B) {
	benchmarkGet(b, "/api/v1/namespaces/default/pods/pod-0", "application/vnd.kubernetes.protobuf,application/json", 1)
}

func BenchmarkGetJSON(b *testing.B) {
	benchmarkGet(b, "/api/v1/namespaces/default/pods/pod-0", "application/json", 1)
}

func BenchmarkListProtobuf(b *testing.B) {
	benchmarkGet(b, "/api/v1/pods", "application/vnd.kubernetes.protobuf", 5000)
}

func BenchmarkListJSON(b *testing.B) {
	benchmarkGet(b, "/api/v1/pods", "application/json", 5000)
}

func BenchmarkListTable(b *testing.B) {
	benchmarkGet(b, "/api/v1/pods", "application/json;as=Table;v=v1;g=meta.k8s.io", 5000)
}

// BenchmarkNew measures the start of the front.
func BenchmarkNew(b *testing.B) {
	f := newFake(kind.All()...)
	b.ReportAllocs()
	for b.Loop() {
		New(Config{API: f, Authn: fakeAuthn{}})
	}
}
