// Package proxy makes Services work on a node: it turns Services and
// EndpointSlices into one nftables table, `ip keelson-proxy`, that rewrites the
// destination of new connections (ClusterIP, NodePort, load-balancer addresses,
// external addresses).
//
// A change of one Service touches only that Service's chains and map elements,
// in one atomic transaction. A change that somebody else makes to the table is
// noticed through the kernel's notifications and repaired by replacing the
// table, again atomically: there is no moment without rules. Established
// connections live in conntrack and do not notice either.
//
// The budget of a rolling update. An endpoint that is no longer ready (its pod
// is being deleted) gets no new connection on a node from the moment that node
// has applied the EndpointSlice in which it is not ready: the write of the
// slice, one watch event, and one transaction, together tens of milliseconds
// (Config.Applied reports each). Until then a terminating pod still gets new
// connections, so it must go on accepting for that long after it was told to
// stop; a preStop sleep of a second is ample. When a Service has no ready
// endpoint left, those that terminate but still serve are used (KEP-1669).
//
// It must never touch a table other than its own, drop a packet that is not
// addressed to a Service, or end an established TCP connection.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"

	"keelson.dev/services/node/internal/nftwatch"
)

// TableName is the name of the table, in the family ip.
const TableName = "keelson-proxy"

// Node is what a rule set depends on besides Services and EndpointSlices.
type Node struct {
	// Name of this node; endpoints with this nodeName are local.
	Name string
	// Zone of this node, for endpoints' hints; empty when unknown.
	Zone string
	// Addresses on which NodePorts answer (IPv4).
	Addresses []netip.Addr
	// ClusterCIDR holds all pods' addresses (IPv4).
	ClusterCIDR netip.Prefix
	// ServiceCIDR holds all ClusterIPs (IPv4). Traffic to one of its
	// addresses that no Service takes is rejected.
	ServiceCIDR netip.Prefix
	// NodeLocal are ClusterIPs that this node answers for by a program of its
	// own (cluster DNS): no rule is made for Services that have one of them.
	NodeLocal []netip.Addr
}

// Listing is where the proxy reads from: netcache.Set, or a table of a test.
type Listing interface {
	// Service returns a Service, and whether it exists.
	Service(namespace, name string) (*corev1.Service, bool)
	// Services returns all Services.
	Services() []*corev1.Service
	// ServiceSlices returns the EndpointSlices of a Service.
	ServiceSlices(namespace, name string) []*discoveryv1.EndpointSlice
}

// Change says which Service may have changed and what caused it.
type Change struct {
	// Service that changed, or whose EndpointSlices did.
	Service types.NamespacedName
	// Traceparent of the write that caused it; may be empty.
	Traceparent string
}

// Source is a Listing that says when it changes.
type Source interface {
	Listing
	// Subscribe calls f for every change, from one goroutine. f does not block.
	Subscribe(f func(Change))
	// Synced is closed once the Listing is complete.
	Synced() <-chan struct{}
}

// Config is what Run needs.
type Config struct {
	Node Node
	// Source of Services and EndpointSlices.
	Source Source
	// Zone, if set, is asked for the node's zone before each sync.
	Zone func() string
	// Applied, if set, is called after each successful transaction.
	Applied func(Applied)
	// Metrics may be nil.
	Metrics *Metrics
	// Log may be nil.
	Log *slog.Logger
}

// Applied describes a transaction.
type Applied struct {
	// Services that were looked at.
	Services int
	// Full is true when the whole table was replaced.
	Full bool
	// Operations in the transaction.
	Operations int
	// Took is the time from the first change noticed to the kernel's commit.
	Took time.Duration
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
	// conntrackRetry is when flows that could not be ended are looked at again.
	conntrackRetry = 2 * time.Second
	// maxCauses bounds the span links of one sync.
	maxCauses = 16
)

// Run keeps the table as Services and EndpointSlices want it until ctx ends. The
// table stays when Run returns, so that Services go on working while the program
// restarts; Cleanup removes it. All work on the kernel is done by the calling
// goroutine, so a caller may pin it to a network namespace.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Node.validate(); err != nil {
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
	watch, err := nftwatch.Table(TableName)
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	defer watch.Close()
	health := newHealthServer(log)
	defer health.close()

	dirty := newDirtySet()
	cfg.Source.Subscribe(dirty.add)
	select {
	case <-ctx.Done():
		return nil
	case <-cfg.Source.Synced():
	}

	s := newSyncer(cfg.Node, nft)
	s.full = true
	s.clients = readClients
	retry := retryFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-dirty.wake:
		case <-timer.C:
		case <-watch.Foreign:
			log.Warn("service rules were changed by another program; repairing", "table", TableName)
			s.full = true
			cfg.Metrics.repaired()
		}
		changes, since := dirty.take()
		if cfg.Zone != nil {
			s.setZone(cfg.Zone())
		}
		applied, err := syncOnce(ctx, s, cfg.Source, watch, changes)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.full = true
			cfg.Metrics.failed()
			log.Error("service rules were not applied; will retry", "error", err, "retry", retry)
			timer.Reset(retry)
			retry = min(2*retry, retryMost)
			continue
		}
		retry = retryFirst
		if err := cleanConntrack(s); err != nil {
			log.Warn("stale UDP flows were not removed; will retry", "error", err)
			timer.Reset(conntrackRetry)
		}
		health.set(s.health())
		for _, c := range s.takeConflicts() {
			log.Warn("two services claim one address and port; the older one has it", "service", c.loser, "holder", c.holder, "key", c.key)
		}
		applied.Took = time.Since(since)
		cfg.Metrics.applied(applied, s)
		if cfg.Applied != nil {
			cfg.Applied(applied)
		}
	}
}

// syncOnce applies the changes.
func syncOnce(ctx context.Context, s *syncer, list Listing, watch *nftwatch.Watch, changes changes) (Applied, error) {
	begin := time.Now()
	var applied Applied
	var err error
	transaction := func() { applied, err = s.sync(ctx, list, changes.services) }
	if s.full {
		watch.Repair(transaction)
	} else {
		watch.Own(transaction)
	}
	record(ctx, changes, begin, applied, err)
	return applied, err
}

// Cleanup removes the table. Removing what is not there is no error.
func Cleanup(ctx context.Context) error {
	nft, err := knftables.New(knftables.IPv4Family, TableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("remove table %s: %w", TableName, err)
	}
	return nil
}

func (n Node) validate() error {
	if n.Name == "" {
		return errors.New("proxy: node name is empty")
	}
	for _, p := range []netip.Prefix{n.ClusterCIDR, n.ServiceCIDR} {
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("proxy: cluster and service ranges must be IPv4 prefixes, got %q", p)
		}
	}
	for _, a := range n.Addresses {
		if !a.Is4() {
			return fmt.Errorf("proxy: node address %s is not IPv4", a)
		}
	}
	return nil
}
