package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestIsCritical(t *testing.T) {
	for name, c := range map[string]struct {
		annotation, value string
		priority          int32
		want              bool
	}{
		"a pod":                   {"", "", 1_999_999_999, false},
		"from the API":            {AnnotationSource, "api", 0, false},
		"static":                  {AnnotationSource, "file", 0, true},
		"a mirror":                {corev1.MirrorPodAnnotationKey, "hash", 0, true},
		"critical to the cluster": {"", "", 2_000_000_000, true},
		"critical to the node":    {"", "", 2_000_001_000, true},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{c.annotation: c.value}}, Spec: corev1.PodSpec{Priority: &c.priority}}
		if got := IsCritical(p); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if IsCritical(&corev1.Pod{}) {
		t.Error("a pod without priority is critical")
	}
}
