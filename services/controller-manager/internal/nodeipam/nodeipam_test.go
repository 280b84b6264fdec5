package nodeipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/testkit"
)

var small = Config{ClusterCIDR: netip.MustParsePrefix("10.244.0.0/22"), NodeMaskSize: 24}

func TestRanges(t *testing.T) {
	r := NewRanges(small)
	r.Occupy("old", "10.244.1.0/24")
	r.Occupy("foreign", "192.168.0.0/24")
	seen := map[string]bool{"10.244.1.0/24": true}
	for i := range 3 {
		cidr, err := r.Allocate(fmt.Sprint("n", i))
		if err != nil || seen[cidr] {
			t.Fatalf("range %d: %q, %v", i, cidr, err)
		}
		seen[cidr] = true
	}
	if _, err := r.Allocate("one-too-many"); !errors.Is(err, ErrFull) {
		t.Errorf("a full range: %v", err)
	}
	again, err := r.Allocate("n1")
	if err != nil || !seen[again] {
		t.Errorf("the same node again: %q, %v", again, err)
	}
	r.Release("n1")
	if cidr, err := r.Allocate("n4"); err != nil || cidr != again {
		t.Errorf("after a release: %q, %v; want %q", cidr, err, again)
	}
}

// TestOccupiedBySeveral gives parts of the range to more than one node, as only
// a user that writes Nodes by hand can.
func TestOccupiedBySeveral(t *testing.T) {
	allocate := func(r *Ranges, want string) {
		t.Helper()
		if cidr, err := r.Allocate("new"); cidr != want || (err != nil) != (want == "") {
			t.Errorf("got %q, %v; want %q", cidr, err, want)
		}
		r.Release("new")
	}
	r := NewRanges(small)
	r.Occupy("wide", "10.244.0.0/23")
	allocate(r, "10.244.2.0/24")
	r = NewRanges(small)
	r.Occupy("whole", "10.0.0.0/8")
	allocate(r, "")
	r.Release("whole")
	allocate(r, "10.244.0.0/24")
	r = NewRanges(small)
	for i := range 4 {
		r.Occupy(fmt.Sprint("n", i), fmt.Sprintf("10.244.%d.0/24", i))
	}
	r.Occupy("copy", "10.244.1.0/24")
	r.Release("copy")
	allocate(r, "") // n1 still has it
	r.Occupy("part", "10.244.3.128/25")
	r.Release("n3")
	allocate(r, "")
	r.Release("part")
	allocate(r, "10.244.3.0/24")
}

func TestCheck(t *testing.T) {
	for _, c := range []Config{
		{}, {ClusterCIDR: small.ClusterCIDR, NodeMaskSize: 21}, {ClusterCIDR: small.ClusterCIDR, NodeMaskSize: 31},
		{ClusterCIDR: netip.MustParsePrefix("fd00::/64"), NodeMaskSize: 80},
	} {
		if c.Check() == nil {
			t.Errorf("%+v passed", c)
		}
	}
	if err := small.Check(); err != nil {
		t.Error(err)
	}
}

func TestGivesEachNodeItsOwn(t *testing.T) {
	w := testkit.Start(t)
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "has"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.0.0/24", PodCIDRs: []string{"10.244.0.0/24"}}})
	w.Run(New(w.Cluster, small))
	for i := range 3 {
		testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}})
	}
	w.Eventually("a range for each", func() bool {
		seen := map[string]bool{}
		for _, n := range testkit.List[*corev1.Node](w, "") {
			if n.Spec.PodCIDR != "" {
				seen[n.Spec.PodCIDR] = true
			}
		}
		return len(seen) == 4
	})
	// A fifth fits once another has gone.
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "late"}})
	testkit.Delete[*corev1.Node](w, "", "n0")
	w.Eventually("the freed range", func() bool { return testkit.Get[*corev1.Node](w, "", "late").Spec.PodCIDR != "" })
}
