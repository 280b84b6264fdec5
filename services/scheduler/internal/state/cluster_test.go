package state

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods that come and go are forgotten, however many there are.
func TestLogIsBounded(t *testing.T) {
	c := New()
	for i := range 10 {
		c.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}})
	}
	began := c.Position()
	for i := range 20_000 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: "n"}}
		c.SetPod(NewPod(pod).On(fmt.Sprint("n", i%10)))
		c.RemovePod(Key{"n", pod.Name})
		if i < 100 {
			continue
		}
		if changes, ok := c.Since(c.Position() - 100); !ok || len(changes) != 100 {
			t.Fatalf("a reader that is 100 changes behind gets %d, %v", len(changes), ok)
		}
	}
	if len(c.log) > 2*c.MaxBehind() || cap(c.log) > 4*c.MaxBehind() {
		t.Errorf("the log has %d changes, room for %d", len(c.log), cap(c.log))
	}
	if _, ok := c.Since(began); ok {
		t.Error("all changes are kept")
	}
}
