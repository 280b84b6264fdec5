package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

// firewall keeps the cluster's forwarded packets from being dropped by an iptables filter
// table whose FORWARD chain drops by default, as Docker sets it up. Accepting them in a
// table of our own does not help, because a packet must be accepted by every table and a
// drop is final. So the accepting rules are added where packets are dropped: in
// DOCKER-USER, which Docker leaves to users, or else at the head of FORWARD.
type firewall struct {
	rules [][]string
	run   func(ctx context.Context, program string, args ...string) ([]byte, error)
	// legacyTables lists the tables of the legacy iptables interface that are in use in
	// this network namespace.
	legacyTables func() []byte
}

const firewallComment = "keelson: pods and services"

func newFirewall(clusterCIDR netip.Prefix) *firewall {
	comment := []string{"-m", "comment", "--comment", firewallComment, "-j", "ACCEPT"}
	rule := func(match ...string) []string { return append(match, comment...) }
	cidr := clusterCIDR.Masked().String()
	return &firewall{
		rules: [][]string{
			rule("-s", cidr),
			rule("-d", cidr),
			// Both directions to a Service whose endpoint is a node's own address.
			rule("-m", "conntrack", "--ctstate", "DNAT"),
		},
		run: func(ctx context.Context, program string, args ...string) ([]byte, error) {
			cmd := exec.CommandContext(ctx, program, args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil && stderr.Len() > 0 {
				err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
			}
			return out, err
		},
		legacyTables: func() []byte {
			b, _ := os.ReadFile("/proc/thread-self/net/ip_tables_names")
			return b
		},
	}
}

// apply adds the missing rules. It does nothing if there is no iptables program or no
// filter table.
func (f *firewall) apply(ctx context.Context) error {
	var errs []error
	for _, program := range f.programs() {
		errs = append(errs, f.applyWith(ctx, program))
	}
	return errors.Join(errs...)
}

// programs returns the iptables programs whose kernel interface is in use. Running the
// legacy program would create its tables.
func (f *firewall) programs() []string {
	list := []string{"iptables-nft"}
	if bytes.Contains(f.legacyTables(), []byte("filter")) {
		list = append(list, "iptables-legacy")
	}
	return list
}

func (f *firewall) applyWith(ctx context.Context, program string) error {
	out, err := f.run(ctx, program, "-w", "5", "-S")
	if errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	chain := forwardChain(string(out))
	if chain == "" {
		return nil
	}
	missing := f.missing(string(out), chain)
	for _, rule := range missing {
		if _, err := f.run(ctx, program, append([]string{"-w", "5", "-I", chain}, rule...)...); err != nil {
			return fmt.Errorf("%s: accept pod traffic in %s: %w", program, chain, err)
		}
	}
	return nil
}

// forwardChain returns the chain for our rules, or "" if nothing is dropped. It must be a
// chain that all forwarded packets reach.
func forwardChain(listing string) string {
	lines := strings.Split(listing, "\n")
	drops := false
	for _, l := range lines {
		if l == "-A FORWARD -j DOCKER-USER" {
			return "DOCKER-USER"
		}
		if l == "-P FORWARD DROP" || (strings.HasPrefix(l, "-A FORWARD ") && (strings.Contains(l, "-j DROP") || strings.Contains(l, "-j REJECT"))) {
			drops = true
		}
	}
	if drops {
		return "FORWARD"
	}
	return ""
}

// missing returns the rules that a chain lacks. Listings repeat a rule as it was given,
// except for quotes and the order of matches, so the comment and the rest are compared
// separately.
func (f *firewall) missing(listing, chain string) [][]string {
	var out [][]string
	for _, rule := range f.rules {
		match := strings.Join(rule[:len(rule)-6], " ")
		found := false
		for l := range strings.SplitSeq(listing, "\n") {
			found = found || (strings.HasPrefix(l, "-A "+chain+" "+match+" ") && strings.Contains(l, firewallComment) && strings.HasSuffix(l, "-j ACCEPT"))
		}
		if !found {
			out = append(out, rule)
		}
	}
	return out
}

// remove deletes our rules from both chains.
func (f *firewall) remove(ctx context.Context) error {
	var errs []error
	for _, program := range f.programs() {
		out, err := f.run(ctx, program, "-w", "5", "-S")
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", program, err))
			continue
		}
		for _, chain := range []string{"DOCKER-USER", "FORWARD"} {
			for _, rule := range f.rules {
				if len((&firewall{rules: [][]string{rule}}).missing(string(out), chain)) > 0 {
					continue
				}
				if _, err := f.run(ctx, program, append([]string{"-w", "5", "-D", chain}, rule...)...); err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", program, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}
