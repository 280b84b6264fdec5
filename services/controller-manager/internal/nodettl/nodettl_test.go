package nodettl_test

import (
	"fmt"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/nodettl"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPlan(t *testing.T) {
	for _, tt := range []struct{ tier, nodes, want int }{
		{0, 0, 0}, {0, 100, 0}, {0, 101, 1}, {1, 90, 1}, {1, 89, 0}, {0, 5000, 4}, {4, 5, 0}, {4, 20_000, 5}, {3, 1900, 3}, {4, 1800, 4},
	} {
		if got := nodettl.Plan(tt.tier, tt.nodes); got != tt.want {
			t.Errorf("%d nodes, from tier %d: tier %d, want %d", tt.nodes, tt.tier, got, tt.want)
		}
	}
}

// Every node has the annotation, and gets another when the cluster grows.
func TestNodesAreTold(t *testing.T) {
	w := Start(t)
	w.Run(nodettl.New(w.Cluster))
	all := func(n int, ttl string) func() bool {
		return func() bool {
			told := 0
			for _, node := range List[*corev1.Node](w, "") {
				if v, ok := node.Annotations[corev1.ObjectTTLAnnotationKey]; ok && v == ttl {
					told++
				}
			}
			return told == n
		}
	}
	for i := range 3 {
		Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}})
	}
	w.Eventually("three nodes with 0", all(3, "0"))
	for i := 3; i < 101; i++ {
		Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}})
	}
	w.Eventually("all nodes with 15", all(101, "15"))
}
