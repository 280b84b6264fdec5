package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// resizing returns the attributes of a resize of a pod on node n.
func resizing(change func(pod, old *corev1.Pod)) *Attributes {
	old := podOf(asking(quantities("cpu", "1"), nil))
	old.Spec.NodeName, old.Generation = "n", 1
	pod := old.DeepCopy()
	pod.Generation = 2
	change(pod, old)
	a := attributes(Update, pod, old)
	a.Subresource = "resize"
	return a
}

func TestPodResize(t *testing.T) {
	node := func(change func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelOSStable: "linux"}},
			Status: corev1.NodeStatus{Allocatable: quantities("cpu", "4", "memory", "1Gi")}}
		change(n)
		return n
	}
	plain := node(func(*corev1.Node) {})
	to := func(cpu, memory string) func(pod, old *corev1.Pod) {
		return func(pod, _ *corev1.Pod) {
			pod.Spec.Containers[0].Resources.Requests = quantities("cpu", cpu, "memory", memory)
		}
	}
	whole := func(pod, old *corev1.Pod) {
		old.Spec.Resources = &corev1.ResourceRequirements{Requests: quantities("cpu", "1")}
		pod.Spec.Resources = &corev1.ResourceRequirements{Requests: quantities("cpu", "2")}
	}
	const feature = "InPlacePodLevelResourcesVerticalScaling"
	for name, c := range map[string]struct {
		node   *corev1.Node
		change func(pod, old *corev1.Pod)
		text   string
		cause  metav1.CauseType
	}{
		"fits":    {plain, to("4", "1Gi"), "", ""},
		"too big": {plain, to("5", "2Gi"), "node didn't have enough allocatable resources: cpu, requested: 5000, allocatable: 4000; memory, requested: 2147483648, allocatable: 1073741824", "NodeCapacity"},
		"no node": {node(func(n *corev1.Node) { n.Name = "m" }), to("1", "1"), `node "n" not found`, ""},
		"another system": {node(func(n *corev1.Node) { n.Labels[corev1.LabelOSStable] = "windows" }), to("2", "1"),
			`pod resize is only supported on linux nodes, node "n" is "windows"`, "UnsupportedPlatform"},
		"no node yet": {plain, func(pod, old *corev1.Pod) {
			to("5", "1")(pod, old)
			pod.Spec.NodeName, old.Spec.NodeName = "", ""
		}, "", ""},
		"nothing changes": {plain, func(pod, old *corev1.Pod) {
			to("5", "1")(pod, old)
			pod.Generation = old.Generation
		}, "", ""},
		"the whole pod":            {plain, whole, `pod update requires features ` + feature + ` which are not available on node "n"`, ""},
		"the whole pod, supported": {node(func(n *corev1.Node) { n.Status.DeclaredFeatures = []string{feature} }), whole, "", ""},
	} {
		err := (&PodResize{State: state(c.node)}).Validate(t.Context(), resizing(c.change))
		refused(t, name, err, c.text)
		if c.cause != "" && !apierrors.HasStatusCause(err, c.cause) {
			t.Errorf("%s: %v has no cause %s", name, err, c.cause)
		}
	}
}

func TestLimitRangeOfResize(t *testing.T) {
	p := &LimitRanger{State: state(limits(corev1.LimitRangeItem{
		Type: corev1.LimitTypeContainer, Max: quantities("cpu", "2"), Default: quantities("cpu", "2"),
	}))}
	to := func(cpu string) func(pod, old *corev1.Pod) {
		return func(pod, _ *corev1.Pod) { pod.Spec.Containers[0].Resources.Limits = quantities("cpu", cpu) }
	}
	refused(t, "within", p.Validate(t.Context(), resizing(to("2"))), "")
	refused(t, "above", p.Validate(t.Context(), resizing(to("3"))), "maximum cpu usage per Container is 2, but limit is 3")
	refused(t, "being deleted", p.Validate(t.Context(), resizing(func(pod, old *corev1.Pod) {
		to("3")(pod, old)
		old.DeletionTimestamp = &metav1.Time{}
	})), "")
	a := resizing(func(*corev1.Pod, *corev1.Pod) {})
	refused(t, "default", p.Admit(t.Context(), a), "")
	if got := a.Object.(*corev1.Pod).Spec.Containers[0].Resources.Limits; got.Cpu().String() != "2" {
		t.Errorf("limits %v, want the default of the range", got)
	}
}
