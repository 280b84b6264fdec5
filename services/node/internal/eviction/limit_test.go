package eviction

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestExceeded(t *testing.T) {
	const mi = 1 << 20
	limit := resource.MustParse("10Mi")
	emptyDir := func(medium corev1.StorageMedium) *corev1.Pod {
		p := newPod("p", 0)
		p.Spec.Volumes = []corev1.Volume{
			{Name: "free", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: medium, SizeLimit: &limit}}},
		}
		return p
	}
	container := newPod("p", 0)
	container.Spec.Containers = append(container.Spec.Containers, corev1.Container{Name: "d"})
	container.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: limit}
	sidecar, initial := newPod("p", 0), newPod("p", 0)
	always := corev1.ContainerRestartPolicyAlways
	sidecar.Spec.InitContainers = []corev1.Container{{Name: "i", RestartPolicy: &always, Resources: container.Spec.Containers[0].Resources}}
	initial.Spec.InitContainers = []corev1.Container{{Name: "i", Resources: container.Spec.Containers[0].Resources}}
	use := func(name string, root, logs, volume int64) *Use {
		return &Use{Containers: []ContainerUse{{Name: name, Root: Disk{Bytes: root * mi}, Logs: Disk{Bytes: logs * mi}}}, Volumes: map[string]Disk{"v": {Bytes: volume * mi}, "free": {}}}
	}
	const (
		volumeText    = `Usage of EmptyDir volume "v" exceeds the limit "10Mi". `
		podText       = `Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. `
		containerText = `Container i exceeded its local ephemeral storage limit "10Mi". `
	)
	for _, c := range []struct {
		name       string
		pod        *corev1.Pod
		use        *Use
		imageDisk  bool
		limited    bool
		want, text string
	}{
		{"no limit", newPod("p", 0), use("c", 100, 100, 0), false, false, "", ""},
		{"at the limit", emptyDir(""), use("c", 0, 0, 10), false, true, "", ""},
		{"over the limit", emptyDir(""), use("c", 0, 0, 11), false, true, limitEmptyDir, volumeText},
		{"memory is limited by the kernel", emptyDir(corev1.StorageMediumMemory), use("c", 0, 0, 11), false, false, "", ""},
		{"not measured", emptyDir(""), nil, false, true, "", ""},
		{"layer and logs", container, use("c", 6, 4, 0), false, true, "", ""},
		{"the pod's total", container, use("d", 0, 6, 5), false, true, limitPod, podText},
		{"logs alone", container, use("c", 0, 11, 0), true, true, limitPod, podText},
		{"a sidecar", sidecar, use("i", 11, 0, 0), false, true, limitPod, podText},
		{"an init container", initial, use("i", 10, 0, 0), false, true, "", ""},
	} {
		if got := Limited(c.pod); got != c.limited {
			t.Errorf("%s: limited is %t", c.name, got)
		}
		if limit, text := Exceeded(Candidate{c.pod, c.use}, c.imageDisk); limit != c.want || text != c.text {
			t.Errorf("%s: %q %q, want %q %q", c.name, limit, text, c.want, c.text)
		}
	}
	// A container exceeds its own limit without exceeding the pod's.
	two := container.DeepCopy()
	two.Spec.Containers[0].Name, two.Spec.Containers[1].Resources = "i", container.Spec.Containers[0].Resources
	if limit, text := Exceeded(Candidate{two, use("i", 0, 11, 0)}, true); limit != limitContainer || text != containerText {
		t.Errorf("one of two containers: %q %q", limit, text)
	}
	if limit, _ := Exceeded(Candidate{two, use("i", 11, 0, 0)}, true); limit != "" {
		t.Errorf("a writable layer on another disk: %q", limit)
	}
}

func TestAdmit(t *testing.T) {
	effort, burst, tolerant, critical := newPod("a", 0), newPod("b", 0, "memory=1Mi"), newPod("c", 0), newPod("d", 2_000_000_000)
	tolerant.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists}}
	memory, disk := []corev1.NodeConditionType{corev1.NodeMemoryPressure}, []corev1.NodeConditionType{corev1.NodeDiskPressure}
	for _, c := range []struct {
		name     string
		pod      *corev1.Pod
		pressure []corev1.NodeConditionType
		want     string
	}{
		{"no pressure", effort, nil, ""},
		{"memory, best effort", effort, memory, "Pod was rejected: The node had condition: [MemoryPressure]. "},
		{"memory, burstable", burst, memory, ""},
		{"memory, tolerated", tolerant, memory, ""},
		{"memory, critical", critical, memory, ""},
		{"disk, burstable", burst, disk, "Pod was rejected: The node had condition: [DiskPressure]. "},
		{"disk, tolerated", tolerant, disk, "Pod was rejected: The node had condition: [DiskPressure]. "},
		{"disk, critical", critical, disk, ""},
		{"both", tolerant, append(memory, disk...), "Pod was rejected: The node had condition: [MemoryPressure DiskPressure]. "},
	} {
		got := ""
		if r := Admit(c.pod, c.pressure); r != nil {
			got = r.Message
			if r.Reason != "Evicted" {
				t.Errorf("%s: reason %s", c.name, r.Reason)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
