// Package victim orders pods by which to delete first, as Kubernetes' controllers do.
// It must never delete one.
package victim

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/podstate"
)

// candidate holds what the order of deletion depends on.
type candidate struct {
	pod       *corev1.Pod
	bound     bool
	phase     int
	ready     bool
	cost      int32
	crowd     int
	readyAge  int
	restarts  int32
	sidecars  int32
	createAge int
}

// Order sorts active pods by how little is lost with them: not yet on a node
// before those on one; pending, unknown, running; not ready before ready; a
// lower controller.kubernetes.io/pod-deletion-cost; on a node with more ready
// related pods; ready for a shorter time; with more restarts; younger. Times are
// compared by their order of magnitude (KEP-2185), and the uid decides between
// equals, so that not always the youngest goes.
func Order(active, related []*corev1.Pod, now time.Time) []*corev1.Pod {
	crowds := map[string]int{}
	for _, p := range related {
		if podstate.Active(p) && podstate.Ready(p) {
			crowds[p.Spec.NodeName]++
		}
	}
	all := make([]candidate, len(active))
	for i, p := range active {
		v := candidate{
			pod: p, bound: p.Spec.NodeName != "", phase: phaseRank(p.Status.Phase), ready: podstate.Ready(p),
			cost: deletionCost(p), crowd: crowds[p.Spec.NodeName], createAge: magnitude(p.CreationTimestamp, now),
		}
		if c := podstate.Condition(p, corev1.PodReady); v.ready && c != nil {
			v.readyAge = magnitude(c.LastTransitionTime, now)
		}
		for _, s := range p.Status.ContainerStatuses {
			v.restarts = max(v.restarts, s.RestartCount)
		}
		for _, s := range p.Status.InitContainerStatuses {
			if restartable(p, s.Name) {
				v.sidecars = max(v.sidecars, s.RestartCount)
			}
		}
		all[i] = v
	}
	slices.SortFunc(all, compare)
	out := make([]*corev1.Pod, len(all))
	for i := range all {
		out[i] = all[i].pod
	}
	return out
}

// compare returns a negative number if a is deleted before b.
func compare(a, b candidate) int {
	return first(
		boolRank(a.bound)-boolRank(b.bound),
		a.phase-b.phase,
		boolRank(a.ready)-boolRank(b.ready),
		sign(int64(a.cost)-int64(b.cost)),
		b.crowd-a.crowd,
		a.readyAge-b.readyAge,
		sign(int64(b.restarts)-int64(a.restarts)),
		sign(int64(b.sidecars)-int64(a.sidecars)),
		a.createAge-b.createAge,
		strings.Compare(string(a.pod.UID), string(b.pod.UID)),
	)
}

func first(values ...int) int {
	for _, v := range values {
		if v != 0 {
			return v
		}
	}
	return 0
}

func sign(v int64) int {
	switch {
	case v < 0:
		return -1
	case v > 0:
		return 1
	}
	return 0
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

func phaseRank(p corev1.PodPhase) int {
	switch p {
	case corev1.PodUnknown:
		return 1
	case corev1.PodRunning:
		return 2
	}
	return 0
}

func deletionCost(p *corev1.Pod) int32 {
	v, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return int32(v)
}

// magnitude returns the order of magnitude of an age, 0 for an unknown one.
func magnitude(since metav1.Time, now time.Time) int {
	if since.IsZero() {
		return 0
	}
	return 1 + int(math.Log2(float64(max(now.Sub(since.Time), 1))))
}

func restartable(p *corev1.Pod, container string) bool {
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.Name == container {
			return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		}
	}
	return false
}
