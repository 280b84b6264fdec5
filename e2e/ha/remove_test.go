package ha_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

var (
	removals    = flag.Int("removals", 2, "how many times the members are removed down to one and added again")
	removalSeed = flag.Uint64("removal-seed", 7, "of the order of removals")
)

// TestMembersAreRemovedInAnyOrder removes members down to one, those that lead etcd or
// the raft store among them, and adds them again: the cluster serves after each step.
func TestMembersAreRemovedInAnyOrder(t *testing.T) {
	c := start(t)
	random := rand.New(rand.NewPCG(*removalSeed, *removalSeed))
	for round := range *removals {
		for left := 3; left > 1; left-- {
			all := c.seats()
			if len(all) != left {
				t.Fatalf("round %d: members are %v, want %d", round, all, left)
			}
			// Every other one leads etcd: that is the order that has failed.
			victim := all[random.IntN(left)].name
			for _, s := range all {
				if round%2 == 0 && s.etcd == "leader" || round%4 == 1 && s.raft == "leader" {
					victim = s.name
				}
			}
			out := c.keel("member", "remove", victim, "--wait", "60s")
			if left == 3 && !strings.Contains(out, "2 members") {
				t.Errorf("an even number of members is left without a word: %s", out)
			}
			c.writes(fmt.Sprintf("round-%d-%d", round, left))
		}
		for range 2 {
			c.keel("member", "add")
		}
		c.writes(fmt.Sprintf("round-%d-grown", round))
	}
}

// writes makes sure that both stores can be written.
func (c *controlPlane) writes(name string) {
	c.t.Helper()
	for _, what := range [][]string{
		{"create", "configmap", name},
		{"create", "-f", "-"},
	} {
		stdin := ""
		if what[1] == "-f" {
			stdin = fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":%q,"namespace":"default"}}`, name)
		}
		if out, err := c.feed(stdin, "kubectl", append(what, "--request-timeout=20s")...); err != nil {
			c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(what, " "), err, out)
		}
	}
}
