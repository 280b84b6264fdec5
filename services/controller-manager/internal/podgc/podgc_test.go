package podgc

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/testkit"
)

func pod(name, node string, phase corev1.PodPhase, age time.Duration) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: phase},
	}
}

func TestExcess(t *testing.T) {
	got := Excess([]*corev1.Pod{
		pod("new", "", corev1.PodSucceeded, time.Minute), pod("oldest", "", corev1.PodFailed, time.Hour),
		pod("running", "", corev1.PodRunning, 2*time.Hour), pod("old", "", corev1.PodSucceeded, time.Hour/2),
	}, 1)
	var names []string
	for _, p := range got {
		names = append(names, p.Name)
	}
	testkit.Same(t, "removed", names, []string{"oldest", "old"})
}

func TestLostNode(t *testing.T) {
	w := testkit.Start(t)
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "there"}})
	testkit.Create(w, pod("stays", "there", corev1.PodRunning, 0))
	testkit.Create(w, pod("unbound", "", corev1.PodPending, 0))
	testkit.Create(w, pod("lost", "gone", corev1.PodRunning, 0))
	w.Run(build(w.Cluster, DefaultTerminated, 20*time.Millisecond))
	w.Eventually("the lost pod is removed", func() bool { return !testkit.Exists[*corev1.Pod](w, "default", "lost") })
	w.Never("another pod is removed", func() bool { return len(testkit.List[*corev1.Pod](w, "default")) != 2 })
}

// The condition with the reason of a pod's end has the generation that it refers to.
func TestLostPodSaysWhy(t *testing.T) {
	w := testkit.Start(t)
	lost := pod("lost", "gone", corev1.PodRunning, 0)
	lost.Finalizers = []string{"example.com/hold"}
	generation := testkit.Create(w, lost).Generation
	w.Run(build(w.Cluster, DefaultTerminated, 20*time.Millisecond))
	w.Eventually("the pod has failed", func() bool {
		p := testkit.Get[*corev1.Pod](w, "default", "lost")
		c := podstate.Condition(p, corev1.DisruptionTarget)
		return p.Status.Phase == corev1.PodFailed && p.Status.ObservedGeneration == generation && generation > 0 &&
			c != nil && c.Reason == "DeletionByPodGC" && c.ObservedGeneration == generation
	})
}

func TestNodeIsDeletedLater(t *testing.T) {
	w := testkit.Start(t)
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	testkit.Create(w, pod("p", "n", corev1.PodRunning, 0))
	w.Run(build(w.Cluster, DefaultTerminated, 20*time.Millisecond))
	testkit.Delete[*corev1.Node](w, "", "n")
	w.Eventually("its pod is removed", func() bool { return !testkit.Exists[*corev1.Pod](w, "default", "p") })
}
