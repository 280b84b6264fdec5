package endpoints

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(i int, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprint(i))},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.244.%d.%d", i/200, i%200),
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func notReady(p *corev1.Pod)    { p.Status.Conditions = nil }
func terminating(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }
func port(name string, n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: name, ContainerPort: n}}
	}
}

func service(change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: map[string]string{"team": "a"}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, ClusterIP: "10.96.0.9",
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}},
		},
	}
	for _, f := range change {
		f(s)
	}
	return s
}

// shape is the subsets in a line: ports, ready and not ready addresses.
func shape(e *corev1.Endpoints) string { //nolint:staticcheck // this is what the package is for.
	out := ""
	for _, s := range e.Subsets {
		for _, p := range s.Ports {
			out += fmt.Sprintf("%s:%d ", p.Name, p.Port)
		}
		out += fmt.Sprintf("%d+%d; ", len(s.Addresses), len(s.NotReadyAddresses))
	}
	return out
}

func TestSubsets(t *testing.T) {
	publish := func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }
	headless := func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Ports = corev1.ClusterIPNone, nil }
	web := port("web", 8080)
	pods := []*corev1.Pod{pod(1, web), pod(2, web, notReady), pod(3, web, terminating), pod(4, port("web", 9090)), pod(5)}
	tests := []struct {
		name string
		svc  *corev1.Service
		want string
	}{
		{"by ports", service(), "http:8080 1+1; http:9090 1+0; "},
		{"published", service(publish), "http:8080 3+0; http:9090 1+0; "},
		{"headless without ports", service(headless), "3+1; "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := wanted(tt.svc, pods, nil)
			if got := shape(e); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if e.Labels["team"] != "a" || e.Labels[managedByLabel] != managedBy {
				t.Errorf("labels %v", e.Labels)
			}
			if again := wanted(tt.svc, pods, e); again != nil {
				t.Errorf("nothing changed, but %+v", again)
			}
		})
	}
}

func TestTooMany(t *testing.T) {
	var pods []*corev1.Pod
	for i := range 1100 {
		p := pod(i, port("web", 80))
		if i < 300 {
			notReady(p)
		}
		pods = append(pods, p)
	}
	e := wanted(service(), pods, nil)
	if got := shape(e); got != "http:80 800+200; " {
		t.Errorf("got %q: ready ones stay first", got)
	}
	if e.Annotations[corev1.EndpointsOverCapacity] != truncated {
		t.Errorf("annotations %v", e.Annotations)
	}
	if e = wanted(service(), pods[300:], e); e == nil || e.Annotations[corev1.EndpointsOverCapacity] != "" {
		t.Error("the annotation outlived its cause")
	}
}
