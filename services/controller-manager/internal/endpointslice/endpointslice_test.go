package endpointslice_test

import (
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/endpoints"
	"keelson.dev/services/controller-manager/internal/endpointslice"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Both forms of endpoints follow pods, and repair what others do to them.
func TestFollowsPods(t *testing.T) {
	w := Start(t)
	w.Run(endpointslice.New(w.Cluster), endpoints.New(w.Cluster))
	Create(w, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
	})
	counts := func() (slices, ready, old int) {
		for _, s := range List[*discoveryv1.EndpointSlice](w, "default") {
			slices++
			for _, e := range s.Endpoints {
				if *e.Conditions.Ready {
					ready++
				}
			}
		}
		for _, e := range List[*corev1.Endpoints](w, "default") {
			for _, s := range e.Subsets {
				old += len(s.Addresses)
			}
		}
		return slices, ready, old
	}
	is := func(slices, ready int) func() bool {
		return func() bool { s, r, o := counts(); return s == slices && r == ready && o == ready }
	}
	w.Eventually("an empty slice", is(1, 0))
	w.Kubelet("n1", nil)
	Create(w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", Labels: map[string]string{"app": "web"}}})
	w.Eventually("one endpoint", is(1, 1))
	Update(w, "default", "a", func(p *corev1.Pod) { p.Labels = nil })
	w.Eventually("none", is(1, 0))
	Update(w, "default", "a", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} })
	w.Eventually("one again", is(1, 1))
	slice := List[*discoveryv1.EndpointSlice](w, "default")[0]
	Update(w, "default", slice.Name, func(s *discoveryv1.EndpointSlice) { s.Endpoints = nil })
	w.Eventually("the repair", is(1, 1))
	Delete[*discoveryv1.EndpointSlice](w, "default", slice.Name)
	w.Eventually("a new slice", is(1, 1))
	Delete[*corev1.Endpoints](w, "default", "web")
	w.Eventually("new endpoints", is(1, 1))
	Delete[*corev1.Pod](w, "default", "a")
	w.Eventually("none in the end", is(1, 0))
}

// Endpoints that a user wrote for a service without a selector show as slices.
func TestMirrors(t *testing.T) {
	w := Start(t)
	w.Run(endpointslice.New(w.Cluster), endpointslice.NewMirror(w.Cluster), endpoints.New(w.Cluster))
	meta := metav1.ObjectMeta{Namespace: "default", Name: "outside"}
	Create(w, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}})
	e := &corev1.Endpoints{ObjectMeta: meta, Subsets: []corev1.EndpointSubset{{
		Addresses:         []corev1.EndpointAddress{{IP: "192.0.2.1"}, {IP: "2001:db8::1"}},
		NotReadyAddresses: []corev1.EndpointAddress{{IP: "192.0.2.2"}},
		Ports:             []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
	}}}
	Create(w, e)
	count := func(slices, endpoints int) func() bool {
		return func() bool {
			n := 0
			all := List[*discoveryv1.EndpointSlice](w, "default")
			for _, s := range all {
				n += len(s.Endpoints)
			}
			return len(all) == slices && n == endpoints
		}
	}
	w.Eventually("a slice of each family", count(2, 3))
	Update(w, "default", "outside", func(e *corev1.Endpoints) { e.Subsets[0].Addresses = e.Subsets[0].Addresses[:1] })
	w.Eventually("one slice", count(1, 2))
	Update(w, "default", "outside", func(e *corev1.Endpoints) { e.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"} })
	w.Eventually("none where it is not wanted", count(0, 0))
	Update(w, "default", "outside", func(e *corev1.Endpoints) { e.Labels = nil })
	w.Eventually("one again", count(1, 2))
	Delete[*corev1.Endpoints](w, "default", "outside")
	w.Eventually("none without endpoints", count(0, 0))
}
