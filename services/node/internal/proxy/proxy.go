// Package proxy implements Services on a node: it turns Services and EndpointSlices into
// one nftables table, `ip keelson-proxy`. The table redirects new connections to ClusterIPs,
// NodePorts, load balancer addresses and external IPs to endpoints.
//
// A change to one Service touches only that Service's chains and map elements, in one
// atomic transaction. The kernel's notifications reveal when another program changes the
// table; the proxy then repairs it by replacing it, again atomically, so the rules are
// never absent. Established connections live in conntrack and are not affected.
//
// The time budget of a rolling update: an endpoint that is no longer ready, because its pod
// is being deleted, gets no new connections on a node once that node has applied the
// EndpointSlice in which it is not ready. That takes the write of the slice, one watch
// event and one transaction, together tens of milliseconds; Config.Applied reports each.
// Until then a terminating pod still gets new connections, so it must keep accepting them
// for that long after it was told to stop; a preStop sleep of a second is ample. When a
// Service has no ready endpoint left, endpoints that are terminating but still serving are
// used (KEP-1669).
//
// It must never touch a table other than its own, drop a packet that is not addressed to a
// Service, or end an established TCP connection.
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

// Node describes the node that a rule set is computed for.
type Node struct {
	// Name is the name of this node. Endpoints with this nodeName are local.
	Name string
	// Zone is this node's zone, for endpoint hints. It is empty if unknown.
	Zone string
	// Addresses are the IPv4 addresses on which NodePorts are served.
	Addresses []netip.Addr
	// ClusterCIDR contains all pod addresses (IPv4).
	ClusterCIDR netip.Prefix
	// ServiceCIDR contains all ClusterIPs (IPv4). Traffic to one of its addresses that
	// belongs to no Service is rejected.
	ServiceCIDR netip.Prefix
	// NodeLocal are ClusterIPs that a program on this node serves itself (cluster DNS).
	// Services with one of them get no rules.
	NodeLocal []netip.Addr
}

// Listing provides the Services and EndpointSlices; netcache.Set implements it.
type Listing interface {
	// Service returns a Service, and whether it exists.
	Service(namespace, name string) (*corev1.Service, bool)
	// Services returns all Services.
	Services() []*corev1.Service
	// ServiceSlices returns the EndpointSlices of a Service.
	ServiceSlices(namespace, name string) []*discoveryv1.EndpointSlice
}

// Change is a possible change of one Service.
type Change struct {
	// Service is the Service that changed, or whose EndpointSlices changed.
	Service types.NamespacedName
	// Traceparent is the trace context of the write that caused the change. It may be
	// empty.
	Traceparent string
}

// Source is a Listing that reports its changes.
type Source interface {
	Listing
	// Subscribe calls f for every change, from one goroutine. f must not block.
	Subscribe(f func(Change))
	// Synced is closed once the Listing is complete.
	Synced() <-chan struct{}
}

// Config configures Run.
type Config struct {
	Node Node
	// Source provides Services and EndpointSlices.
	Source Source
	// Zone returns the node's zone. It is called before each sync, and may be nil.
	Zone func() string
	// Applied is called after each successful transaction. It may be nil.
	Applied func(Applied)
	// Metrics may be nil.
	Metrics *Metrics
	// Log may be nil; then the default logger is used.
	Log *slog.Logger
}

// Applied describes a transaction.
type Applied struct {
	// Services is the number of Services that were computed.
	Services int
	// Full is true if the whole table was replaced.
	Full bool
	// Operations is the number of operations in the transaction.
	Operations int
	// Took is the time from the first change that was noticed until the kernel's commit.
	Took time.Duration
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
	// conntrackRetry is the delay before removing stale UDP flows is tried again.
	conntrackRetry = 2 * time.Second
	// maxCauses is the maximum number of span links of one sync.
	maxCauses = 16
)

// Run keeps the table up to date with Services and EndpointSlices until ctx ends. The table
// remains when Run returns, so that Services keep working while the program restarts;
// Cleanup removes it. All kernel calls are made by the calling goroutine, so the caller may
// lock it to a network namespace.
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
			log.WarnContext(ctx, "service rules were changed by another program, repairing them", "table", TableName)
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
			log.ErrorContext(ctx, "service rules were not applied, will retry", "error", err, "retry", retry)
			timer.Reset(retry)
			retry = min(2*retry, retryMost)
			continue
		}
		retry = retryFirst
		if err := cleanConntrack(s); err != nil {
			log.WarnContext(ctx, "stale UDP flows were not removed, will retry", "error", err)
			timer.Reset(conntrackRetry)
		}
		health.set(ctx, s.health())
		for _, c := range s.takeConflicts() {
			log.WarnContext(ctx, "two services claim the same address and port, the older one gets it", "service", c.loser, "holder", c.holder, "key", c.key)
		}
		applied.Took = time.Since(since)
		cfg.Metrics.applied(applied, s)
		if cfg.Applied != nil {
			cfg.Applied(applied)
		}
	}
}

// syncOnce applies the changes in one transaction.
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

// Cleanup removes the table. It is not an error if there is none.
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
