package hostnet

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"keelson.dev/tools/keel/internal/cluster"
)

// inNamespace runs f in a new network namespace, which is removed when f returns.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		lockThread()
		ns, err := netns.New()
		if err == nil {
			defer ns.Close()
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %v: %v: %s", program, args, err, out)
	}
	return string(out)
}

func TestBridgesPassAFirewall(t *testing.T) {
	t.Parallel()
	inNamespace(t, func() error {
		c, other := &cluster.Cluster{ID: "abc123"}, &cluster.Cluster{ID: "def456", Egress: true}
		// Docker's rules exist already.
		for _, rule := range [][]string{{"-P", "FORWARD", "DROP"}, {"-N", "DOCKER-USER"}, {"-A", "FORWARD", "-j", "DOCKER-USER"}} {
			output(t, "iptables-nft", rule...)
		}
		before := output(t, "iptables-nft", "-S")
		for range 2 {
			for _, each := range []*cluster.Cluster{c, other} {
				if err := ensureForwarding(each); err != nil {
					return err
				}
			}
		}
		list := output(t, "iptables-nft", "-S", "FORWARD")
		for want, times := range map[string]int{
			"-A FORWARD -i ksabc123 -o ksabc123 -m comment --comment keelson-abc123 -j ACCEPT": 1,
			"keelson-def456": 3,
		} {
			if strings.Count(list, want) != times {
				t.Errorf("%q occurs %d times, want %d:\n%s", want, strings.Count(list, want), times, list)
			}
		}
		if err := removeForwarding(c.ID); err != nil {
			return err
		}
		if list := output(t, "iptables-nft", "-S"); strings.Contains(list, "abc123") || strings.Count(list, "def456") != 7 {
			t.Errorf("after the first cluster was removed:\n%s", list)
		}
		if err := removeForwarding(other.ID); err != nil {
			return err
		}
		if after := output(t, "iptables-nft", "-S"); after != before {
			t.Errorf("left:\n%s\nfound:\n%s", after, before)
		}
		return nil
	})
}

func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	inNamespace(t, func() error {
		c := &cluster.Cluster{ID: "abc123"}
		if err := ensureForwarding(c); err != nil {
			return err
		}
		if err := removeForwarding(c.ID); err != nil {
			return err
		}
		if err := removeForwarding(c.ID); err != nil {
			return err
		}
		if out := output(t, "nft", "list", "ruleset"); out != "" {
			t.Errorf("left behind:\n%s", out)
		}
		return nil
	})
}
