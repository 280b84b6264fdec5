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

// firewall keeps forwarded packets of the cluster from being dropped by an
// iptables filter table whose FORWARD chain drops by default, as docker sets it
// up. To accept them in a table of our own does not help: every table has its
// say, and a drop is final. So the accepting rules go where the drop is: into
// DOCKER-USER, which docker leaves to others, or else to the head of FORWARD.
type firewall struct {
	rules [][]string
	run   func(ctx context.Context, program string, args ...string) ([]byte, error)
	// legacyTables tells which tables of the older kernel interface are in use
	// in this network namespace.
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
			// A Service whose endpoint is a node's own address: there and back.
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

// apply adds what is missing. Where no iptables program or no filter table is,
// there is nothing to do.
func (f *firewall) apply(ctx context.Context) error {
	var errs []error
	for _, program := range f.programs() {
		errs = append(errs, f.applyWith(ctx, program))
	}
	return errors.Join(errs...)
}

// programs are the iptables programs whose kernel interface is in use. Asking the
// legacy one would bring its tables into being.
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
			return fmt.Errorf("%s: accept pods' traffic in %s: %w", program, chain, err)
		}
	}
	return nil
}

// forwardChain picks the chain for our rules from a listing; empty when nothing
// is dropped. A chain that only some packets reach is no place for them.
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

// missing returns the rules that do not stand in a chain. Listings spell a rule
// as it was given, but for quotes and the order of matches; the comment and the
// rest are compared apart.
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

// remove deletes our rules wherever they stand.
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
