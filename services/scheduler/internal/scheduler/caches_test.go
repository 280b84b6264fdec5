package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/scheduler/internal/state"
)

func cpu(amount string) corev1.ResourceList {
	if amount == "" {
		return nil
	}
	return corev1.ResourceList{"cpu": resource.MustParse(amount)}
}

// What counts of a pod on a node is the largest of what it requests, what is allocated to
// it and what it has. Nothing of that may get lost when the cache drops what nobody reads.
func TestRequestsOfPodsOnNodes(t *testing.T) {
	status := func(allocated, actual string) []corev1.ContainerStatus {
		s := corev1.ContainerStatus{Name: "c", AllocatedResources: cpu(allocated)}
		if actual != "" {
			s.Resources = &corev1.ResourceRequirements{Requests: cpu(actual)}
		}
		return []corev1.ContainerStatus{s}
	}
	infeasible := []corev1.PodCondition{{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonInfeasible}}
	for name, tc := range map[string]struct {
		spec   string
		change func(*corev1.Pod)
		want   int64
		kept   bool // what the node reports
	}{
		"just bound":              {"300m", func(*corev1.Pod) {}, 300, false},
		"running as requested":    {"300m", func(p *corev1.Pod) { p.Status.ContainerStatuses = status("300m", "300m") }, 300, false},
		"to shrink":               {"100m", func(p *corev1.Pod) { p.Status.ContainerStatuses = status("300m", "300m") }, 300, true},
		"shrunk, not yet in fact": {"100m", func(p *corev1.Pod) { p.Status.ContainerStatuses = status("100m", "300m") }, 300, true},
		"to grow":                 {"500m", func(p *corev1.Pod) { p.Status.ContainerStatuses = status("300m", "300m") }, 500, true},
		"allocated, not reported": {"100m", func(p *corev1.Pod) { p.Status.ContainerStatuses = status("300m", "") }, 300, true},
		"can never grow": {"900m", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = status("300m", "300m")
			p.Status.Conditions = infeasible
		}, 300, true},
		"a sidecar to shrink": {"100m", func(p *corev1.Pod) {
			always := corev1.ContainerRestartPolicyAlways
			p.Spec.InitContainers = []corev1.Container{{Name: "side", RestartPolicy: &always, Resources: corev1.ResourceRequirements{Requests: cpu("100m")}}}
			s := status("400m", "400m")
			s[0].Name = "side"
			p.Status.InitContainerStatuses = s
		}, 500, true},
		"overhead of its class": {"300m", func(p *corev1.Pod) { p.Spec.Overhead = cpu("50m") }, 350, false},
		"requests of the pod": {"300m", func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: cpu("1")}
			p.Spec.Overhead = cpu("50m")
		}, 1050, false},
		"a pod to shrink": {"100m", func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: cpu("500m")}
			p.Status.AllocatedResources = cpu("1")
			p.Status.Resources = &corev1.ResourceRequirements{Requests: cpu("800m")}
		}, 1000, true},
	} {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
			Spec: corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{
				Name: "c", Resources: corev1.ResourceRequirements{Requests: cpu(tc.spec)},
			}}},
		}
		tc.change(p)
		slim := slimPod(p.DeepCopy())
		if got := state.NewPod(slim).Requests.CPU; got != tc.want {
			t.Errorf("%s: %dm count, want %dm", name, got, tc.want)
		}
		if whole := state.NewPod(p).Requests.CPU; whole != tc.want {
			t.Errorf("%s: %dm count of the whole pod, want %dm", name, whole, tc.want)
		}
		if kept := len(slim.Status.ContainerStatuses)+len(slim.Status.InitContainerStatuses) > 0 || slim.Status.AllocatedResources != nil; kept != tc.kept {
			t.Errorf("%s: status kept: %v", name, kept)
		}
	}
}
