package ha_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"keelson.dev/e2e/internal/cluster"
)

var (
	removals    = flag.Int("removals", 2, "how many times the members are removed down to one and added again")
	removalSeed = flag.Uint64("removal-seed", 7, "of the order of removals")
)

// TestMembersAreRemovedInAnyOrder removes members down to one, leaders of etcd and of
// the raft store among them, and adds them again: the cluster serves after each step.
func TestMembersAreRemovedInAnyOrder(t *testing.T) {
	c := start(t)
	random := rand.New(rand.NewPCG(*removalSeed, *removalSeed))
	for round := range *removals {
		for left := 3; left > 1; left-- {
			all := c.Settled(t)
			if len(all) != left {
				t.Fatalf("round %d: members are %v, want %d", round, all, left)
			}
			// In every other round it leads etcd: that order has failed.
			victim := all[random.IntN(left)].Name
			for _, s := range all {
				if round%2 == 0 && s.Etcd == "leader" || round%4 == 1 && s.Raft == "leader" {
					victim = s.Name
				}
			}
			out := c.Keel(t, "member", "remove", victim, "--wait", "60s")
			if left == 3 && !strings.Contains(out, "2 members") {
				t.Errorf("no warning of an even number of members: %s", out)
			}
			writes(t, c, fmt.Sprintf("round-%d-%d", round, left))
		}
		for range 2 {
			c.Keel(t, "member", "add")
		}
		writes(t, c, fmt.Sprintf("round-%d-grown", round))
	}
}

// writes checks that both stores can be written.
func writes(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	for _, what := range [][]string{
		{"create", "configmap", name},
		{"create", "-f", "-"},
	} {
		stdin := ""
		if what[1] == "-f" {
			stdin = fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":%q,"namespace":"default"}}`, name)
		}
		if _, err := c.Feed(t.Context(), stdin, "kubectl", append(what, "--request-timeout=20s")...); err != nil {
			t.Fatal(err)
		}
	}
}
