// Package dns is cluster DNS on a node: each node answers its own pods on the
// cluster's DNS address, from caches, and asks upstream servers for the rest.
// There is no DNS pod to find, to scale or to wait for.
//
// Names follow Kubernetes' DNS specification, version 1.1.0: A and SRV records of
// Services, of headless Services' endpoints and of pods by their address, CNAME
// for ExternalName, PTR for ClusterIPs and headless endpoints. IPv4 only: AAAA
// questions for names that exist are answered with no data.
//
// It must never ask an upstream server about the cluster's own domain or ranges,
// wait for an upstream server without bound, keep more than a bounded number of
// answers, questions or connections, or let one namespace take all of them: each
// may have as many as are left for others.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"keelson.dev/services/node/internal/link"
)

// LinkName is the interface that has the cluster's DNS address on each node.
const LinkName = "keelson-dns"

// Source is where answers come from: netcache.Set, or a table of a test.
type Source interface {
	Service(namespace, name string) (*corev1.Service, bool)
	ServiceSlices(namespace, name string) []*discoveryv1.EndpointSlice
	// ServicesAt returns the Services with a ClusterIP.
	ServicesAt(netip.Addr) []*corev1.Service
	// SlicesAt returns the EndpointSlices with an endpoint's address.
	SlicesAt(netip.Addr) []*discoveryv1.EndpointSlice
	// HasNamespace says whether a namespace has a Service.
	HasNamespace(string) bool
	// Synced is closed when the source is complete.
	Synced() <-chan struct{}
}

// Config is what Run needs.
type Config struct {
	// Source of Services and EndpointSlices.
	Source Source
	// ListenIP is the cluster's DNS address. Run gives it to the interface
	// LinkName of this node.
	ListenIP netip.Addr
	// Port to listen on; 0 means 53.
	Port uint16
	// Domain of the cluster; empty means cluster.local.
	Domain string
	// ResolvConf names the file with the upstream servers; empty means
	// /etc/resolv.conf. It is read again when it changes.
	ResolvConf string
	// ClusterCIDR and ServiceCIDR are the ranges whose reverse names are the
	// cluster's own.
	ClusterCIDR, ServiceCIDR netip.Prefix
	// Namespace of the pod of this node with an address, or "": what is bounded is
	// shared among namespaces, and among addresses that are no pod's. May be nil.
	Namespace func(netip.Addr) string
	// Metrics and Log may be nil.
	Metrics *Metrics
	Log     *slog.Logger

	// listening, for tests, is told the address that was bound.
	listening func(netip.AddrPort)
	// noLink, for tests, leaves the interfaces alone; upstreamPort is the port of
	// their upstream servers.
	noLink       bool
	upstreamPort string
}

const (
	// tcpConnections bounds the connections that are open at once.
	tcpConnections = 256
	tcpIdle        = 8 * time.Second
	ioTimeout      = 2 * time.Second
)

// Run answers until ctx ends. Its sockets are made by the calling goroutine, so a
// caller may pin it to a network namespace. Questions about the cluster's own
// names wait until Source is synced.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Source == nil || !cfg.ListenIP.Is4() {
		return errors.New("dns: source and an IPv4 listen address must be set")
	}
	if cfg.Port == 0 && cfg.listening == nil {
		cfg.Port = 53
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if !cfg.noLink {
		l, err := link.Ensure(LinkName)
		if err != nil {
			return fmt.Errorf("dns: %w", err)
		}
		if err := link.EnsureAddress(l, cfg.ListenIP); err != nil {
			return fmt.Errorf("dns: %w", err)
		}
	}
	udp, tcp, err := listen(ctx, netip.AddrPortFrom(cfg.ListenIP, cfg.Port))
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	handler := newHandler(serving, cfg)
	servers := []*mdns.Server{
		{PacketConn: udp, Handler: handler, UDPSize: maxUDP, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout},
		{Listener: limit(tcp, tcpConnections, cfg.Namespace), Handler: handler, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout,
			IdleTimeout: func() time.Duration { return tcpIdle }},
	}
	if cfg.listening != nil {
		cfg.listening(udp.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	cfg.Log.Info("cluster DNS is up", "address", udp.LocalAddr().String(), "domain", handler.zone.domain)
	failed := make(chan error, len(servers))
	for _, s := range servers {
		go func() { failed <- s.ActivateAndServe() }()
	}
	var result error
	waiting := len(servers)
	select {
	case <-ctx.Done():
	case result = <-failed:
		waiting--
	}
	stopServing()
	handler.upstream.stop()
	for _, s := range servers {
		// A server that has not started yet refuses to stop: close what it
		// would serve as well.
		_ = s.Shutdown()
	}
	udp.Close()
	tcp.Close()
	for range waiting {
		<-failed
	}
	handler.upstream.close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("dns: server ended: %w", result)
}

// listen opens both sockets on one port. Where the system chooses it, for TCP, it
// may be taken for UDP: then another is chosen.
func listen(ctx context.Context, at netip.AddrPort) (net.PacketConn, net.Listener, error) {
	var lc net.ListenConfig
	for try := 1; ; try++ {
		tcp, err := lc.Listen(ctx, "tcp4", at.String())
		if err != nil {
			return nil, nil, err
		}
		port := tcp.Addr().(*net.TCPAddr).Port
		udp, err := lc.ListenPacket(ctx, "udp4", net.JoinHostPort(at.Addr().String(), strconv.Itoa(port)))
		if err == nil {
			return udp, tcp, nil
		}
		tcp.Close()
		if at.Port() != 0 || try == 10 {
			return nil, nil, err
		}
	}
}

// Cleanup removes the interface with the DNS address.
func Cleanup() error { return link.Remove(LinkName) }

// canonical is a name in lower case with a final dot.
func canonical(name string) string {
	return strings.ToLower(mdns.Fqdn(name))
}
