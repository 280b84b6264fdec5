package statefulset_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
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

// TestReleasesPodsWithOtherNames checks that a pod that the set controls but that has
// another name than the set's pods is released, and that the set does not count it.
func TestReleasesPodsWithOtherNames(t *testing.T) {
	w := Start(t)
	s := set(1)
	s.UID = ""
	s = Create(w, s)
	ref := *metav1.NewControllerRef(s, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))
	Create(w, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db-x", Labels: map[string]string{"app": "db"}, OwnerReferences: []metav1.OwnerReference{ref}},
		Spec:       s.Spec.Template.Spec,
	})
	w.CatchUp()
	w.Run(statefulset.New(w.Cluster.As("statefulset-controller")))
	w.Eventually("db-x is released", func() bool {
		return metav1.GetControllerOf(Get[*corev1.Pod](w, "default", "db-x")) == nil
	})
	w.Eventually("db-0 is created", func() bool { return Exists[*corev1.Pod](w, "default", "db-0") })
	w.Eventually("the status counts db-0 only", func() bool { return Get[*appsv1.StatefulSet](w, "default", "db").Status.Replicas == 1 })
}

// TestEventsHaveKubernetesTexts compares the events of a set with those of Kubernetes 1.37.
func TestEventsHaveKubernetesTexts(t *testing.T) {
	w := Start(t)
	w.Kubelet("n1", nil)
	w.Server.Admit(func(verb string, obj client.Object) error {
		if p, ok := obj.(*corev1.Pod); ok && verb == "create" && p.Name == "db-1" {
			return errors.New("no room")
		}
		return nil
	})
	w.Run(statefulset.New(w.Cluster.As("statefulset-controller")))
	s := set(2)
	s.UID = ""
	storage(s)
	Create(w, s)
	has := func(reason, text string) func() bool {
		return func() bool {
			return slices.ContainsFunc(List[*corev1.Event](w, "default"), func(e *corev1.Event) bool {
				return e.InvolvedObject.Name == "db" && e.Reason == reason && strings.HasPrefix(e.Message, text)
			})
		}
	}
	w.Eventually("event of a created claim", has("SuccessfulCreate", "create Claim data-db-0 Pod db-0 in StatefulSet db success"))
	w.Eventually("event of a created pod", has("SuccessfulCreate", "create Pod db-0 in StatefulSet db successful"))
	w.Eventually("event of a refused pod", has("FailedCreate", "create Pod db-1 in StatefulSet db failed error: "))
	Update(w, "default", "db", func(s *appsv1.StatefulSet) { none := int32(0); s.Spec.Replicas = &none })
	w.Eventually("event of a deleted pod", has("SuccessfulDelete", "delete Pod db-0 in StatefulSet db successful"))
}
