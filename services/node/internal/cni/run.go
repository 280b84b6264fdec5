package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/link"
	"keelson.dev/services/node/internal/nftwatch"
)

// LinkName is the interface that the Services' range is routed to. No packet leaves through
// it: the proxy either gives a packet another destination or rejects it. Without the route,
// a program on a node without a default route could not reach Services.
const LinkName = "keelson-svc"

// RunConfig configures Run.
type RunConfig struct {
	// NodeName and NodeIP are this node's name and IPv4 address.
	NodeName string
	NodeIP   netip.Addr
	// PodCIDR is this node's pod range, ClusterCIDR contains all pod ranges, and
	// ServiceCIDR contains all ClusterIPs.
	PodCIDR     netip.Prefix
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
	// Masquerade replaces the source address of pods' packets that leave the cluster by the
	// node's address, except towards nodes.
	Masquerade bool
	// Nodes is the cache of all Nodes.
	Nodes *client.Cache[*corev1.Node]
	// HostPorts are the host ports of this node's pods. It may be nil.
	HostPorts *HostPorts
	// Log may be nil; then the default logger is used.
	Log *slog.Logger
	// applied is called by tests after each pass.
	applied func(error)
}

const (
	// resync is the interval at which everything is checked that is not covered by
	// notifications: routes, sysctls and legacy iptables.
	resync     = 20 * time.Second
	retryFirst = 200 * time.Millisecond
)

// Run keeps the node's routes and rules up to date with the cluster's Nodes until ctx ends.
// They remain when Run returns; Cleanup removes them. All kernel calls are made by the
// calling goroutine, so the caller may lock it to a network namespace.
func Run(ctx context.Context, cfg RunConfig) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	nft, err := knftables.New(knftables.IPv4Family, TableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	own, err := nftwatch.Table(TableName)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer own.Close()
	filter, err := nftwatch.Table("filter")
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer filter.Close()

	wake := make(chan struct{}, 1)
	cfg.Nodes.Subscribe(func(e client.Event[*corev1.Node]) {
		if e.Type != client.Modified || !sameNetwork(e.Old, e.Object) {
			nudge(wake)
		}
	})
	select {
	case <-ctx.Done():
		return nil
	case <-cfg.Nodes.Synced():
	}
	n := &network{cfg: cfg, nft: nft, log: log, firewall: newFirewall(cfg.ClusterCIDR), flows: map[uint16]bool{}, held: map[netip.Addr]string{}}
	tick := time.NewTicker(resync)
	defer tick.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-cfg.HostPorts.changed():
		case <-tick.C:
		case <-retry.C:
		case <-filter.Foreign:
		case <-own.Foreign:
			n.rules = ruleset{}
		}
		err := n.apply(ctx, own, filter)
		if cfg.applied != nil {
			cfg.applied(err)
		}
		if err != nil && ctx.Err() == nil {
			log.ErrorContext(ctx, "pod network was not fully applied, will retry", "error", err)
			retry.Reset(retryFirst * 5)
		}
	}
}

// network is the last known state of the pod network in the kernel.
type network struct {
	cfg      RunConfig
	nft      knftables.Interface
	log      *slog.Logger
	firewall *firewall
	rules    ruleset  // as last applied; zero if unknown
	refused  []string // ignored claims of peers, as last logged
	// held maps addresses to the peers that hold them.
	held map[netip.Addr]string
	// ported are the host ports as last applied. flows are the UDP host ports whose stale
	// flows have not been ended yet.
	ported []HostPort
	flows  map[uint16]bool
}

// apply does as much as it can and returns the errors.
func (n *network) apply(ctx context.Context, own, filter *nftwatch.Watch) error {
	peers, refused := peersOf(&n.cfg, n.cfg.Nodes.List(), n.held)
	if !slices.Equal(refused, n.refused) {
		for _, r := range refused {
			n.log.WarnContext(ctx, "pod range or address of a node is ignored", "reason", r)
		}
		n.refused = refused
	}
	hostPorts, known := n.cfg.HostPorts.take()
	want := ruleset{
		podCIDR: n.cfg.PodCIDR, clusterCIDR: n.cfg.ClusterCIDR, masquerade: n.cfg.Masquerade,
		nodes: nodeAddresses(n.cfg.NodeIP, peers), hostPorts: hostPorts,
	}
	var errs []error
	errs = append(errs, set(sysctls), serviceRoute(n.cfg), routes(ctx, n.cfg, peers, n.log))
	if known && !want.equal(n.rules) {
		own.Own(func() {
			err := want.replace(ctx, n.nft)
			if err == nil {
				n.rules = want
				maps.Copy(n.flows, udpChanges(n.ported, want.hostPorts))
				n.ported = want.hostPorts
			}
			if err == nil && len(want.hostPorts) > 0 {
				err = set(loopbackPorts) // only once the rules protect it
			}
			errs = append(errs, err)
		})
	}
	// With the new rules in place, no new flow takes the old path.
	if err := endFlows(n.flows, n.ported); err != nil {
		errs = append(errs, err)
	} else {
		clear(n.flows)
	}
	filter.Own(func() { errs = append(errs, n.firewall.apply(ctx)) })
	return errors.Join(errs...)
}

// sysctls are the settings of the pod network. A packet between a pod and itself, or
// between two pods on the same interface, leaves through the interface that it arrived on.
// The redirects that the kernel would then send teach pods routes that do not exist, and
// use up the rate limit for the ICMP errors that pods need.
var sysctls = map[string]string{
	"ip_forward":                  "1",
	"conf/all/send_redirects":     "0",
	"conf/default/send_redirects": "0",
}

// loopbackPorts allows the node to reach host ports at its loopback address.
var loopbackPorts = map[string]string{"conf/all/route_localnet": "1"}

// set writes the sysctls that differ.
func set(values map[string]string) error {
	for name, value := range values {
		path := "/proc/sys/net/ipv4/" + name
		if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == value {
			continue
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("sysctl net/ipv4/%s: %w", name, err)
		}
	}
	return nil
}

// Cleanup removes everything that Run created: routes, interfaces, the table, and the rules
// in Docker's chains. It is not an error if something does not exist.
func Cleanup(ctx context.Context, clusterCIDR netip.Prefix) error {
	var errs []error
	errs = append(errs, removeRoutes(), link.Remove(LinkName), link.Remove(overlayName), newFirewall(clusterCIDR).remove(ctx))
	nft, err := knftables.New(knftables.IPv4Family, TableName)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("nftables: %w", err))...)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	return errors.Join(append(errs, nft.Run(ctx, tx))...)
}

func (c RunConfig) validate() error {
	if c.NodeName == "" || c.Nodes == nil {
		return errors.New("cni: node name and node cache must be set")
	}
	if !c.NodeIP.Is4() {
		return fmt.Errorf("cni: node address must be IPv4, got %q", c.NodeIP)
	}
	for _, p := range []netip.Prefix{c.PodCIDR, c.ClusterCIDR, c.ServiceCIDR} {
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("cni: ranges must be IPv4 prefixes, got %q", p)
		}
	}
	if c.PodCIDR.Bits() < c.ClusterCIDR.Bits() || !c.ClusterCIDR.Contains(c.PodCIDR.Addr()) {
		return fmt.Errorf("cni: pod range %s of node %s is outside the cluster's range %s", c.PodCIDR, c.NodeName, c.ClusterCIDR)
	}
	return nil
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
