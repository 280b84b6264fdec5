package eviction

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// newPod returns a pod of one container "c" with the given requests ("memory=1Gi").
func newPod(name string, priority int32, requests ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)}, Spec: corev1.PodSpec{
		Priority: &priority, Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}}}},
	}}
	for _, r := range requests {
		k, v, _ := strings.Cut(r, "=")
		p.Spec.Containers[0].Resources.Requests[corev1.ResourceName(k)] = resource.MustParse(v)
	}
	return p
}

func names(list []Candidate) string {
	var out []string
	for _, c := range list {
		out = append(out, c.Pod.Name)
	}
	return strings.Join(out, " ")
}

func TestRank(t *testing.T) {
	const mi = 1 << 20
	memory := func(n int64) *Use { return &Use{Memory: n * mi} }
	disk := func(root, logs, volume int64) *Use {
		return &Use{
			Containers: []ContainerUse{{Name: "c", Root: Disk{root * mi, root}, Logs: Disk{logs * mi, logs}}},
			Volumes:    map[string]Disk{"v": {volume * mi, volume}},
		}
	}
	disks := []Candidate{
		{newPod("small", 0), disk(1, 1, 1)},
		{newPod("layer", 0), disk(9, 0, 0)},
		{newPod("logs", 0), disk(0, 8, 0)},
		{newPod("volume", 0), disk(0, 0, 7)},
		{newPod("asked", 0, "ephemeral-storage=1Gi"), disk(20, 20, 20)},
	}
	for _, c := range []struct {
		name      string
		list      []Candidate
		signal    Signal
		imageDisk bool
		want      string
	}{
		{"over requests, then priority, then excess", []Candidate{
			{newPod("within", 0, "memory=1Gi"), memory(900)},
			{newPod("over", 0, "memory=100Mi"), memory(300)},
			{newPod("far-over", 0), memory(250)},
			{newPod("important", 10), memory(4000)},
			{newPod("within-low", -1, "memory=1Gi"), memory(1)},
			{newPod("unmeasured", 100), nil},
		}, MemoryAvailable, false, "unmeasured far-over over important within-low within"},
		{"memory of the pods' cgroup", []Candidate{{newPod("a", 0), memory(1)}, {newPod("b", 0), memory(2)}}, AllocatableMemory, false, "b a"},
		{"one disk counts everything", disks, NodeFSAvailable, false, "layer logs volume small asked"},
		{"one disk, seen as that of images", disks, ImageFSAvailable, false, "layer logs volume small asked"},
		{"logs and volumes alone", disks, NodeFSAvailable, true, "logs volume small layer asked"},
		{"writable layers alone", disks, ImageFSAvailable, true, "layer small logs volume asked"},
		{"inodes have no requests", disks, NodeFSInodesFree, false, "asked layer logs volume small"},
		{"process IDs: priority, then usage", []Candidate{
			{newPod("many", 5), &Use{PIDs: 900}},
			{newPod("few", 0), &Use{PIDs: 3}},
			{newPod("some", 0), &Use{PIDs: 30}},
		}, PIDAvailable, false, "some few many"},
	} {
		before := names(c.list)
		if got := names(Rank(c.list, c.signal, c.imageDisk)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if names(c.list) != before {
			t.Errorf("%s: the list was modified", c.name)
		}
	}
}

func TestGrace(t *testing.T) {
	soft, hard := &Threshold{Grace: time.Minute}, &Threshold{}
	p := newPod("p", 0)
	thirty := int64(30)
	for _, c := range []struct {
		t    *Threshold
		most time.Duration
		own  *int64
		want time.Duration
	}{
		{hard, time.Minute, &thirty, time.Second},
		{soft, time.Minute, &thirty, 30 * time.Second},
		{soft, 10 * time.Second, &thirty, 10 * time.Second},
		{soft, 10 * time.Second, nil, 10 * time.Second},
		{soft, 0, &thirty, 0},
		{soft, -time.Second, &thirty, -1},
	} {
		p.Spec.TerminationGracePeriodSeconds = c.own
		got := grace(&Policy{MaxPodGrace: c.most}, c.t, p)
		if (got == nil) != (c.want < 0) || got != nil && *got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestMessage(t *testing.T) {
	const mi = 1 << 20
	hard := func(args string) *Threshold { return &policy(t, "--eviction-hard="+args).Thresholds[0] }
	two := newPod("two", 0, "memory=10Mi", "ephemeral-storage=1Mi")
	two.Spec.Containers = append(two.Spec.Containers, corev1.Container{Name: "d"})
	whole := newPod("whole", 0)
	whole.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("5Mi")}}
	use := &Use{Memory: 50 * mi, PIDs: 7, Containers: []ContainerUse{
		{Name: "c", Memory: 9 * mi, Root: Disk{Bytes: 2 * mi}, Logs: Disk{Bytes: mi}},
		{Name: "d", Memory: 41 * mi},
	}}
	for _, c := range []struct {
		name string
		c    Candidate
		t    *Threshold
		left Observation
		want string
	}{
		{"memory", Candidate{two, use}, hard("memory.available<100Mi"), Observation{88 * mi, 1000 * mi},
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 88Mi. Container d was using 41Mi, request is 0, has larger consumption of memory. " +
				"|memory|d|41Mi"},
		{"disk", Candidate{two, use}, hard("nodefs.available<10%"), Observation{99 * mi, 1000 * mi},
			"The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 99Mi. Container c was using 3Mi, request is 1Mi, has larger consumption of ephemeral-storage. " +
				"|ephemeral-storage|c|3Mi"},
		{"inodes", Candidate{two, use}, hard("nodefs.inodesFree<5%"), Observation{49, 1000}, "The node was low on resource: inodes. Threshold quantity: 50, available: 49. |inodes||"},
		{"processes", Candidate{two, use}, hard("pid.available<5%"), Observation{49, 1000}, "The node was low on resource: pids. Threshold quantity: 50, available: 49. |pids||"},
		{"pod-level request", Candidate{whole, &Use{Memory: 6 * mi}}, hard("memory.available<100Mi"), Observation{88 * mi, 1000 * mi},
			"The node was low on resource: memory. Threshold quantity: 100Mi, available: 88Mi. Pod whole was using 6Mi, request is 5Mi, has larger consumption of memory. |memory||"},
		{"not measured", Candidate{two, nil}, hard("memory.available<100Mi"), Observation{88 * mi, 1000 * mi}, "The node was low on resource: memory. Threshold quantity: 100Mi, available: 88Mi. |memory||"},
	} {
		text, a := message(c.c, c.t, c.left)
		if got := strings.Join([]string{text, a["starved_resource"], a["offending_containers"], a["offending_containers_usage"]}, "|"); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}
