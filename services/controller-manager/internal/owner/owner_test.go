package owner_test

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/controller-manager/internal/owner"
)

func pod(name string, deleting bool, set map[string]string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: set}}
	if deleting {
		now := metav1.Now()
		p.DeletionTimestamp = &now
	}
	return p
}

func TestClaim(t *testing.T) {
	mine, other := map[string]string{"app": "web"}, map[string]string{"app": "db"}
	owned := []*corev1.Pod{pod("kept", false, mine), pod("kept though ending", true, mine), pod("strayed", false, other), pod("strayed and ending", true, other)}
	orphans := []*corev1.Pod{pod("found", false, mine), pod("found but ending", true, mine), pod("foreign", false, other)}
	tests := []struct {
		name                 string
		deleting             bool
		selector             labels.Selector
		keep, adopt, release int
	}{
		{"claims", false, labels.SelectorFromSet(mine), 2, 1, 1},
		{"neither adopts nor releases when it is being deleted", true, labels.SelectorFromSet(mine), 2, 0, 0},
		{"a selector for everything adopts nothing", false, labels.Everything(), 4, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := &appsv1.ReplicaSet{}
			if tt.deleting {
				now := metav1.Now()
				o.DeletionTimestamp = &now
			}
			c := owner.Claim(o, tt.selector, owned, orphans)
			if len(c.Keep) != tt.keep || len(c.Adopt) != tt.adopt || len(c.Release) != tt.release {
				t.Errorf("keeps %d, adopts %d, releases %d", len(c.Keep), len(c.Adopt), len(c.Release))
			}
		})
	}
}
