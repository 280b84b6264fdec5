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

// Where the kernel shows bridged packets to iptables (br_netfilter), a FORWARD
// chain that drops by default, as docker sets it up, also drops what nodes of a
// cluster say to each other over its bridge. So the bridge's packets are accepted
// at the head of that chain, whether docker is there already or comes later: it
// leaves the chain's rules in place.

const firewallComment = "keelson-"

// forwardRules accept what stays on a cluster's bridge and, with egress, what
// nodes call outside and the answers to it.
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

// iptables are the programs whose kernel interface is in use here. Asking the
// legacy one would bring its tables into being.
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

// removeForwarding takes the rules away, and the table too if it is as empty as
// the kernel makes it.
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
			_ = run("nft", "delete", "table", "ip", "filter") // where there is none, all the better
		}
	}
	return errors.Join(errs...)
}

// rulesOf are the cluster's rules of the chain FORWARD, each as the arguments after -A.
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
