package admission

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apiresource "k8s.io/apimachinery/pkg/api/resource"

	"keelson.dev/services/apiserver/internal/resource"
)

func quantities(pairs ...string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		list[corev1.ResourceName(pairs[i])] = apiresource.MustParse(pairs[i+1])
	}
	return list
}

func limits(items ...corev1.LimitRangeItem) *corev1.LimitRange {
	return &corev1.LimitRange{ObjectMeta: meta("ns", "limits"), Spec: corev1.LimitRangeSpec{Limits: items}}
}

func asking(requests, limits corev1.ResourceList) corev1.Container {
	return corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func podOf(containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta("ns", "p"), Spec: corev1.PodSpec{Containers: containers}}
}

func TestLimitRangeDefaults(t *testing.T) {
	p := &LimitRanger{State: state(limits(corev1.LimitRangeItem{
		Type: corev1.LimitTypeContainer, Default: quantities("cpu", "2", "memory", "1Gi"), DefaultRequest: quantities("cpu", "1"),
	}))}
	pod := podOf(asking(quantities("cpu", "500m"), quantities("memory", "2Gi")), corev1.Container{Name: "d"})
	pod.Spec.InitContainers = []corev1.Container{{Name: "i"}}
	if err := p.Admit(t.Context(), attributes(Create, pod, nil)); err != nil {
		t.Fatal(err)
	}
	want := []corev1.ResourceRequirements{
		{Requests: quantities("cpu", "500m"), Limits: quantities("cpu", "2", "memory", "2Gi")},
		{Requests: quantities("cpu", "1"), Limits: quantities("cpu", "2", "memory", "1Gi")},
	}
	for i, c := range pod.Spec.Containers {
		if !equality.Semantic.DeepEqual(c.Resources, want[i]) {
			t.Errorf("container %s: resources %v, want %v", c.Name, c.Resources, want[i])
		}
	}
	const said = "LimitRanger plugin set: cpu limit for container c; cpu request for container d; cpu, memory limit for container d; " +
		"cpu request for init container i; cpu, memory limit for init container i"
	if got := pod.Annotations["kubernetes.io/limit-ranger"]; got != said {
		t.Errorf("annotation %q, want %q", got, said)
	}
	old := podOf(corev1.Container{Name: "c"})
	if err := p.Admit(t.Context(), attributes(Update, old, old)); err != nil || old.Spec.Containers[0].Resources.Limits != nil {
		t.Errorf("an update must not be completed: error %v, limits %v", err, old.Spec.Containers[0].Resources.Limits)
	}
}

func TestLimitRangeBounds(t *testing.T) {
	claim := func(size string) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: meta("ns", "c")}
		c.Spec.Resources.Requests = quantities("storage", size)
		return c
	}
	container := func(item corev1.LimitRangeItem) corev1.LimitRangeItem {
		item.Type = corev1.LimitTypeContainer
		return item
	}
	ofPod := corev1.LimitRangeItem{Type: corev1.LimitTypePod, Max: quantities("cpu", "2")}
	ofClaim := corev1.LimitRangeItem{Type: corev1.LimitTypePersistentVolumeClaim, Min: quantities("storage", "1Gi"), Max: quantities("storage", "2Gi")}
	two := asking(quantities("cpu", "1"), quantities("cpu", "1500m"))
	for name, c := range map[string]struct {
		item corev1.LimitRangeItem
		obj  resource.Object
		text string
	}{
		"within":            {container(corev1.LimitRangeItem{Min: quantities("cpu", "1"), Max: quantities("cpu", "2")}), podOf(two), ""},
		"no request":        {container(corev1.LimitRangeItem{Min: quantities("memory", "1")}), podOf(two), "minimum memory usage per Container is 1.  No request is specified"},
		"too small":         {container(corev1.LimitRangeItem{Min: quantities("cpu", "1100m")}), podOf(two), "minimum cpu usage per Container is 1100m, but request is 1"},
		"too small a limit": {container(corev1.LimitRangeItem{Min: quantities("cpu", "1")}), podOf(asking(quantities("cpu", "1"), quantities("cpu", "500m"))), "minimum cpu usage per Container is 1, but limit is 500m"},
		"no limit":          {container(corev1.LimitRangeItem{Max: quantities("memory", "1")}), podOf(two), "maximum memory usage per Container is 1.  No limit is specified"},
		"too large":         {container(corev1.LimitRangeItem{Max: quantities("cpu", "1")}), podOf(two), "maximum cpu usage per Container is 1, but limit is 1500m"},
		"ratio":             {container(corev1.LimitRangeItem{MaxLimitRequestRatio: quantities("cpu", "1")}), podOf(two), "cpu max limit to request ratio per Container is 1, but provided ratio is 1.500000"},
		"ratio, no request": {container(corev1.LimitRangeItem{MaxLimitRequestRatio: quantities("memory", "1")}), podOf(two), "but no request is specified or request is 0"},
		"two violations":    {container(corev1.LimitRangeItem{Max: quantities("cpu", "1", "memory", "1")}), podOf(two), "[maximum cpu usage per Container is 1, but limit is 1500m, maximum memory usage"},
		"one container":     {ofPod, podOf(two), ""},
		"two containers":    {ofPod, podOf(two, two), "maximum cpu usage per Pod is 2, but limit is 3"},
		"a claim":           {ofClaim, claim("1Gi"), ""},
		"a small claim":     {ofClaim, claim("1Mi"), "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"},
		"a large claim":     {ofClaim, claim("3Gi"), "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"},
	} {
		p := &LimitRanger{State: state(limits(c.item))}
		refused(t, name, p.Validate(t.Context(), attributes(Create, c.obj, nil)), c.text)
	}
	grown := &LimitRanger{State: state(limits(ofClaim))}
	refused(t, "growing", grown.Validate(t.Context(), attributes(Update, claim("3Gi"), claim("1Gi"))), "maximum storage usage")
}

func TestRuntimeClass(t *testing.T) {
	class := &nodev1.RuntimeClass{ObjectMeta: meta("", "heavy"), Handler: "h", Overhead: &nodev1.Overhead{PodFixed: quantities("cpu", "100m")},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"a": "b"}, Tolerations: []corev1.Toleration{
			{Key: "x", Operator: corev1.TolerationOpExists}, {Key: "y", Operator: corev1.TolerationOpEqual, Value: "1"},
		}}}
	p := &RuntimeClass{State: state(class)}
	named := func(name string, change func(*corev1.Pod)) *corev1.Pod {
		pod := podOf()
		if name != "" {
			pod.Spec.RuntimeClassName = &name
		}
		if change != nil {
			change(pod)
		}
		return pod
	}
	pod := named("heavy", func(p *corev1.Pod) {
		p.Spec.NodeSelector = map[string]string{"c": "d"}
		p.Spec.Tolerations = []corev1.Toleration{{Key: "x", Operator: corev1.TolerationOpEqual, Value: "1"}, {Key: "z", Operator: corev1.TolerationOpExists}}
	})
	a := attributes(Create, pod, nil)
	refused(t, "admit", p.Admit(t.Context(), a), "")
	refused(t, "validate", p.Validate(t.Context(), a), "")
	if !equality.Semantic.DeepEqual(pod.Spec.Overhead, class.Overhead.PodFixed) || len(pod.Spec.NodeSelector) != 2 {
		t.Errorf("pod: overhead %v, node selector %v", pod.Spec.Overhead, pod.Spec.NodeSelector)
	}
	var keys []string
	for _, toleration := range pod.Spec.Tolerations {
		keys = append(keys, toleration.Key+string(toleration.Operator))
	}
	if got := strings.Join(keys, " "); got != "zExists xExists yEqual" {
		t.Errorf("tolerations: %s", got)
	}
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		text string
	}{
		"unknown":            {named("none", nil), `pod rejected: RuntimeClass "none" not found`},
		"another overhead":   {named("heavy", func(p *corev1.Pod) { p.Spec.Overhead = quantities("cpu", "1") }), "pod rejected: Pod's Overhead doesn't match"},
		"overhead, no class": {named("", func(p *corev1.Pod) { p.Spec.Overhead = quantities("cpu", "1") }), "Overhead set without corresponding RuntimeClass"},
		"conflict":           {named("heavy", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"a": "c"} }), "conflict: runtimeClass.scheduling.nodeSelector[a] = b; pod.spec.nodeSelector[a] = c"},
		"no class":           {named("", nil), ""},
	} {
		a := attributes(Create, c.pod, nil)
		err := p.Admit(t.Context(), a)
		if err == nil {
			err = p.Validate(t.Context(), a)
		}
		refused(t, name, err, c.text)
	}
}
