package replication_test

import (
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/replication"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeepsTheWantedNumberOfPods(t *testing.T) {
	w := Start(t)
	w.Kubelet("n1", nil)
	labels := map[string]string{"app": "old"}
	spec := corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}
	Create(w, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "orphan", Labels: labels}, Spec: spec})
	w.CatchUp()
	w.Run(replication.New(w.Cluster.As("replication-controller")))
	three := int32(3)
	Create(w, &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old"},
		Spec: corev1.ReplicationControllerSpec{
			Replicas: &three, Selector: labels,
			Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	})
	ready := func(n int32) func() bool {
		return func() bool {
			s := Get[*corev1.ReplicationController](w, "default", "old").Status
			return s.ReadyReplicas == n && s.Replicas == n && s.FullyLabeledReplicas == n && len(List[*corev1.Pod](w, "default")) == int(n)
		}
	}
	w.Eventually("three pods are ready", ready(3))
	if ref := metav1.GetControllerOf(Get[*corev1.Pod](w, "default", "orphan")); ref == nil || ref.Kind != "ReplicationController" {
		t.Errorf("orphan: controller reference %v, want the ReplicationController", ref)
	}
	Update(w, "default", "old", func(rc *corev1.ReplicationController) { one := int32(1); rc.Spec.Replicas = &one })
	w.Eventually("one pod is left", ready(1))
}
