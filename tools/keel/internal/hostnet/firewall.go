package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"keelson.dev/tools/keel/internal/cluster"
)

// Where bridged packets pass through iptables (br_netfilter), a FORWARD chain that drops by
// default, as docker configures it, also drops the packets between a cluster's nodes on their
// bridge. So rules at the head of that chain accept the bridge's packets. The order does not
// matter: docker leaves other rules in place if it starts later.

const firewallComment = "keelson-"

// forwardRules returns the rules that accept packets that stay on a cluster's bridge and, with
// egress, nodes' connections to the outside and the replies to them.
func forwardRules(c *cluster.Cluster) [][]string {
	bridge := c.Bridge()
	rules := [][]string{{"-i", bridge, "-o", bridge}}
	if c.Egress {
		rules = append(rules, []string{"-i", bridge}, []string{"-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"})
	}
	for i := range rules {
		rules[i] = append(rules[i], "-m", "comment", "--comment", firewallComment+c.ID, "-j", "ACCEPT")
	}
	return rules
}

// iptables returns the programs whose kernel interface is in use. It avoids the legacy program
// unless its tables exist, because calling it would create them.
func iptables() []string {
	list := []string{"iptables-nft"}
	if b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names"); err == nil && bytes.Contains(b, []byte("filter")) {
		list = append(list, "iptables-legacy")
	}
	var there []string
	for _, p := range list {
		if _, err := exec.LookPath(p); err == nil {
			there = append(there, p)
		}
	}
	return there
}

func ensureForwarding(c *cluster.Cluster) error {
	for _, program := range iptables() {
		for _, rule := range forwardRules(c) {
			if run(program, append([]string{"-w", "5", "-C", "FORWARD"}, rule...)...) == nil {
				continue
			}
			if err := run(program, append([]string{"-w", "5", "-I", "FORWARD"}, rule...)...); err != nil {
				return fmt.Errorf("accept packets of %s: %w", c.Bridge(), err)
			}
		}
	}
	return nil
}

// removeForwarding removes the rules, and the table if nothing but the kernel's empty chains is
// left in it.
func removeForwarding(id string) error {
	var errs []error
	for _, program := range iptables() {
		rules, err := rulesOf(program, id)
		errs = append(errs, err)
		for _, rule := range rules {
			errs = append(errs, run(program, append([]string{"-w", "5", "-D"}, rule...)...))
		}
		if program != "iptables-nft" {
			continue
		}
		rest, err := exec.Command(program, "-w", "5", "-S").Output()
		if err == nil && strings.TrimSpace(string(rest)) == "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT" {
			_ = run("nft", "delete", "table", "ip", "filter") // if there is no table, nothing needs to be deleted
		}
	}
	return errors.Join(errs...)
}

// rulesOf returns the cluster's rules in the chain FORWARD, each as the arguments after -A.
func rulesOf(program, id string) (rules [][]string, err error) {
	list, err := exec.Command(program, "-w", "5", "-S", "FORWARD").Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) > 0 && fields[0] == "-A" && strings.Contains(line, "--comment "+firewallComment+id+" ") {
			rules = append(rules, fields[1:])
		}
	}
	return rules, nil
}

func run(program string, args ...string) error {
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
