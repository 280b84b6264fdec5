package nodecidr

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPool(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		bits   int
		index  int
		want   string
	}{
		{"10.244.0.0/16", 24, 0, "10.244.0.0/24"},
		{"10.244.0.0/16", 24, 255, "10.244.255.0/24"},
		{"10.244.0.0/16", 26, 5, "10.244.1.64/26"},
		{"10.244.3.7/16", 24, 1, "10.244.1.0/24"},
		{"fd00::/48", 64, 0x1234, "fd00:0:0:1234::/64"},
		{"10.0.0.0/8", 30, maxRanges - 1, "10.63.255.252/30"},
	} {
		p, err := newPool(netip.MustParsePrefix(tt.prefix), tt.bits)
		if err != nil {
			t.Fatal(err)
		}
		got := p.at(tt.index)
		if got.String() != tt.want {
			t.Errorf("%s at %d: %s, want %s", tt.prefix, tt.index, got, tt.want)
		}
		if i, ok := p.index(got); !ok || i != tt.index {
			t.Errorf("index of %s: %d %v", got, i, ok)
		}
	}
	p, err := newPool(netip.MustParsePrefix("10.244.0.0/22"), 24)
	if err != nil {
		t.Fatal(err)
	}
	for _, foreign := range []string{"10.245.0.0/24", "10.244.0.0/25", "fd00::/64"} {
		if _, ok := p.index(netip.MustParsePrefix(foreign)); ok {
			t.Errorf("%s is in the pool", foreign)
		}
	}
	p.take("x", netip.MustParsePrefix("10.244.1.0/24"))
	var got []string
	for i := range 3 {
		prefix, err := p.allocate(fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, prefix.String())
	}
	Same(t, "ranges", got, []string{"10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"})
	if _, err := p.allocate("y"); !errors.Is(err, errFull) {
		t.Errorf("a full pool: %v", err)
	}
	p.release("1")
	if prefix, err := p.allocate("y"); err != nil || prefix.String() != "10.244.2.0/24" {
		t.Errorf("after a release: %s %v", prefix, err)
	}
	if _, err := newPool(netip.MustParsePrefix("10.244.0.0/16"), 8); err == nil {
		t.Error("a range larger than the pool")
	}
}

func TestEachNodeHasItsOwn(t *testing.T) {
	w := Start(t)
	Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "old"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.0.0/24", PodCIDRs: []string{"10.244.0.0/24"}}})
	cfg := Config{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")}}
	stop := func() {}
	for round := range 3 {
		c, err := New(w.Cluster, cfg)
		if err != nil {
			t.Fatal(err)
		}
		stop = w.Run(c)
		for i := range 5 {
			Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d-%d", round, i)}})
		}
		w.Eventually("ranges", func() bool {
			for _, n := range List[*corev1.Node](w, "") {
				if n.Spec.PodCIDR == "" {
					return false
				}
			}
			return true
		})
		stop()
	}
	seen := map[string]string{}
	for _, n := range List[*corev1.Node](w, "") {
		for _, cidr := range n.Spec.PodCIDRs {
			if seen[cidr] != "" {
				t.Errorf("%s is %s's and %s's", cidr, n.Name, seen[cidr])
			}
			seen[cidr] = n.Name
		}
		if n.Name != "old" && len(n.Spec.PodCIDRs) != 2 {
			t.Errorf("%s has %v", n.Name, n.Spec.PodCIDRs)
		}
	}
}
