package statefulset_test

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/statefulset"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestRunsAndRollsOut(t *testing.T) {
	w := Start(t)
	w.Kubelet("n1", nil)
	w.Run(statefulset.New(w.Cluster.As("statefulset-controller")))
	s := set(3)
	s.UID = ""
	storage(s)
	Create(w, s)
	run := func(n int, image string) bool {
		pods := List[*corev1.Pod](w, "default")
		for _, p := range pods {
			if p.Spec.Containers[0].Image != image {
				return false
			}
		}
		st := Get[*appsv1.StatefulSet](w, "default", "db").Status
		return len(pods) == n && int(st.AvailableReplicas) == n && int(st.UpdatedReplicas) == n && st.CurrentRevision == st.UpdateRevision
	}
	w.Eventually("three pods are available", func() bool { return run(3, "v2") })
	first := Get[*corev1.Pod](w, "default", "db-0")
	Update(w, "default", "db", func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "v3" })
	w.Eventually("the rollout finishes", func() bool { return run(3, "v3") })
	if again := Get[*corev1.Pod](w, "default", "db-0"); again.UID == first.UID {
		t.Error("db-0 was not replaced")
	}
	Update(w, "default", "db", func(s *appsv1.StatefulSet) { one := int32(1); s.Spec.Replicas = &one })
	w.Eventually("one pod is left", func() bool { return run(1, "v3") })
	if got := List[*corev1.PersistentVolumeClaim](w, "default"); len(got) != 3 {
		t.Errorf("got %d claims after the scale-down, want all three retained", len(got))
	}
}

// TestAdoptsOnlyItsOwnNames checks that pods whose labels match are not adopted unless
// their names are the set's.
func TestAdoptsOnlyItsOwnNames(t *testing.T) {
	w := Start(t)
	for _, name := range []string{"db-0", "db-x", "other-1"} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "db"}}, Spec: set(1).Spec.Template.Spec}
		Create(w, p)
	}
	w.CatchUp()
	w.Run(statefulset.New(w.Cluster.As("statefulset-controller")))
	s := set(1)
	s.UID = ""
	Create(w, s)
	w.Eventually("db-0 is adopted and labeled", func() bool {
		p := Get[*corev1.Pod](w, "default", "db-0")
		return metav1.GetControllerOf(p) != nil && p.Labels[appsv1.PodIndexLabel] == "0"
	})
	for _, name := range []string{"db-x", "other-1"} {
		if ref := metav1.GetControllerOf(Get[*corev1.Pod](w, "default", name)); ref != nil {
			t.Errorf("pod %s: controller reference %v, want none", name, ref)
		}
	}
}
