package hostnet

import (
	"slices"
	"strings"
	"testing"

	"keelson.dev/tools/keel/internal/cluster"
)

// Remove needs only the id of a cluster, can be repeated, and leaves other clusters' networks.
func TestRemoveKnowsAClusterByItsID(t *testing.T) {
	t.Parallel()
	inNamespace(t, func() error {
		mine := &cluster.Cluster{ID: "0abc01", Subnet: 7, ClusterCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/16", Egress: true}
		other := &cluster.Cluster{ID: "0abc02", Subnet: 8, ClusterCIDR: "10.244.0.0/16", ServiceCIDR: "10.96.0.0/16"}
		output(t, "ip", "link", "set", "lo", "up")
		for _, c := range []*cluster.Cluster{mine, other} {
			if err := Ensure(c); err != nil {
				return err
			}
			output(t, "ip", "link", "add", veth(c, 0), "type", "veth", "peer", "name", "p"+c.ID)
			output(t, "ip", "route", "add", strings.Replace(c.LoadBalancerCIDR(), "0/24", "5/32", 1), "dev", c.Bridge(), "proto", "76")
		}
		left, err := Left(mine.ID)
		if err != nil {
			return err
		}
		for _, want := range []string{"link ks0abc01", "link kv0abc01-0", "nftables table ip keelson-0abc01"} {
			if !slices.Contains(left, want) {
				t.Errorf("%q is not among %q", want, left)
			}
		}
		// Delete the bridge first, as an interrupted removal may have done.
		output(t, "ip", "link", "del", mine.Bridge())
		for range 2 {
			if err := Remove(mine.ID); err != nil {
				return err
			}
		}
		if left, err := Left(mine.ID); err != nil || len(left) > 0 {
			t.Errorf("still there are %q, %v", left, err)
		}
		routes := output(t, "ip", "route")
		if strings.Contains(routes, "10.90.7.") {
			t.Errorf("routes to its load balancers still exist:\n%s", routes)
		}
		for _, want := range []string{"10.90.8.5 dev ks0abc02", "unreachable 10.90.8.0/24", "unreachable 10.244.0.0/16"} {
			if !strings.Contains(routes, want) {
				t.Errorf("%q is gone:\n%s", want, routes)
			}
		}
		if left, err := Left(other.ID); err != nil || len(left) < 3 {
			t.Errorf("the other cluster has only %q, %v", left, err)
		}
		if err := Remove(other.ID); err != nil {
			return err
		}
		if routes := output(t, "ip", "route"); strings.TrimSpace(routes) != "" {
			t.Errorf("left behind:\n%s", routes)
		}
		return nil
	})
}
