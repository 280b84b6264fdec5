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

// LinkName is the interface that the route of the Services' range leads to. No
// packet leaves by it: either the proxy gives a packet another destination, or
// refuses it. Without the route a program of the node that has no default route
// could not call a Service.
const LinkName = "keelson-svc"

// RunConfig is what Run needs.
type RunConfig struct {
	// NodeName and NodeIP of this node (IPv4).
	NodeName string
	NodeIP   netip.Addr
	// PodCIDR of this node, ClusterCIDR of all, ServiceCIDR of ClusterIPs.
	PodCIDR     netip.Prefix
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
	// Masquerade gives packets of pods that leave the cluster the node's
	// address, except towards nodes.
	Masquerade bool
	// Nodes is the cache of all Nodes.
	Nodes *client.Cache[*corev1.Node]
	// HostPorts of this node's pods; may be nil.
	HostPorts *HostPorts
	// Log may be nil.
	Log *slog.Logger
	// applied, for tests, is called after each pass.
	applied func(error)
}

const (
	// resync repairs what no notification tells about: routes, sysctls, and
	// iptables in its legacy form.
	resync     = 20 * time.Second
	retryFirst = 200 * time.Millisecond
)

// Run keeps the node's routes and rules as the cluster's Nodes want them until
// ctx ends. They stay when Run returns; Cleanup removes them. All work on the
// kernel is done by the calling goroutine, so a caller may pin it to a network
// namespace.
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
			log.Error("pod network is not as it should be; will retry", "error", err)
			retry.Reset(retryFirst * 5)
		}
	}
}

// network is the pod network's state in the kernel, as far as it is remembered.
type network struct {
	cfg      RunConfig
	nft      knftables.Interface
	log      *slog.Logger
	firewall *firewall
	rules    ruleset  // as last applied; zero when not known
	refused  []string // ranges and addresses of peers that are ignored, as last logged
	// held are the peers that have an address.
	held map[netip.Addr]string
	// ported are the host ports as last applied, and flows the UDP ones whose
	// former flows have not been ended yet.
	ported []HostPort
	flows  map[uint16]bool
}

// apply does everything it can and returns what it could not.
func (n *network) apply(ctx context.Context, own, filter *nftwatch.Watch) error {
	peers, refused := peersOf(&n.cfg, n.cfg.Nodes.List(), n.held)
	if !slices.Equal(refused, n.refused) {
		for _, r := range refused {
			n.log.Warn("pod range or address of a node is ignored", "cause", r)
		}
		n.refused = refused
	}
	want := ruleset{
		podCIDR: n.cfg.PodCIDR, clusterCIDR: n.cfg.ClusterCIDR, masquerade: n.cfg.Masquerade,
		nodes: nodeAddresses(n.cfg.NodeIP, peers), hostPorts: n.cfg.HostPorts.take(),
	}
	var errs []error
	errs = append(errs, set(sysctls), serviceRoute(n.cfg), routes(n.cfg, peers, n.log))
	if !want.equal(n.rules) {
		own.Own(func() {
			err := want.replace(ctx, n.nft)
			if err == nil {
				n.rules = want
				maps.Copy(n.flows, udpChanges(n.ported, want.hostPorts))
				n.ported = want.hostPorts
			}
			if err == nil && len(want.hostPorts) > 0 {
				err = set(loopbackPorts) // once the rules guard it
			}
			errs = append(errs, err)
		})
	}
	// With the new rules in place no new flow takes the old way.
	if err := endFlows(n.flows, n.ported); err != nil {
		errs = append(errs, err)
	} else {
		clear(n.flows)
	}
	filter.Own(func() { errs = append(errs, n.firewall.apply(ctx)) })
	return errors.Join(errs...)
}

// sysctls of the pod network. A packet between a pod and itself, or between two
// of one interface, goes out where it came in; the redirects that the kernel
// would then send teach pods ways that do not exist, and use up the allowance
// for the errors that they should get.
var sysctls = map[string]string{
	"ip_forward":                  "1",
	"conf/all/send_redirects":     "0",
	"conf/default/send_redirects": "0",
}

// loopbackPorts lets the node reach host ports at its loopback address.
var loopbackPorts = map[string]string{"conf/all/route_localnet": "1"}

// set writes the sysctls that are not as they should be.
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

// Cleanup removes what Run made: routes, interfaces, the table, the rules in
// docker's chains. What is not there is no error.
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
		return errors.New("cni: node name and cache of nodes must be set")
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
		return fmt.Errorf("cni: pod range %s of node %s is outside of the cluster's range %s", c.PodCIDR, c.NodeName, c.ClusterCIDR)
	}
	return nil
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
