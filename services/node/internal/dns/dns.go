// Package dns is cluster DNS on a node. Each node answers its own pods' questions on the
// cluster's DNS address from caches, and forwards other questions to upstream servers.
// There are no DNS pods to find, scale or wait for.
//
// Names follow Kubernetes' DNS specification, version 1.1.0: A and SRV records of Services,
// of headless Services' endpoints and of pods by their address, CNAME for ExternalName, PTR
// for ClusterIPs and headless endpoints. IPv4 only: AAAA questions for names that exist are
// answered with no data.
//
// It must never ask an upstream server about the cluster's own domain or ranges, wait for
// an upstream server without a time limit, keep more than a bounded number of answers,
// questions or connections, or let one namespace use up any of these bounds: a namespace
// may hold at most as many as are still free (see share).
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

// Source provides the data for answers; netcache.Set implements it.
type Source interface {
	Service(namespace, name string) (*corev1.Service, bool)
	ServiceSlices(namespace, name string) []*discoveryv1.EndpointSlice
	// ServicesAt returns the Services with this ClusterIP.
	ServicesAt(netip.Addr) []*corev1.Service
	// SlicesAt returns the EndpointSlices that have an endpoint with this address.
	SlicesAt(netip.Addr) []*discoveryv1.EndpointSlice
	// HasNamespace reports whether a namespace has at least one Service.
	HasNamespace(string) bool
	// Synced is closed when the source is complete.
	Synced() <-chan struct{}
}

// Config configures Run.
type Config struct {
	// Source provides Services and EndpointSlices.
	Source Source
	// ListenIP is the cluster's DNS address. Run assigns it to the interface LinkName of
	// this node.
	ListenIP netip.Addr
	// Port is the port to listen on; 0 means 53.
	Port uint16
	// Domain is the cluster's domain; empty means cluster.local.
	Domain string
	// ResolvConf is the file that lists the upstream servers; empty means /etc/resolv.conf.
	// It is read again when it changes.
	ResolvConf string
	// ClusterCIDR and ServiceCIDR are the ranges whose reverse names belong to the cluster.
	ClusterCIDR, ServiceCIDR netip.Prefix
	// Namespace returns the namespace of the node's pod with the given address, or "".
	// Limits are shared among namespaces, and among addresses that belong to no pod. It may
	// be nil.
	Namespace func(netip.Addr) string
	// Metrics and Log may be nil.
	Metrics *Metrics
	Log     *slog.Logger

	// listening is called by tests with the address that was bound.
	listening func(netip.AddrPort)
	// noLink, for tests, leaves the network interfaces alone. upstreamPort is the port of
	// the upstream servers in tests.
	noLink       bool
	upstreamPort string
}

const (
	// tcpConnections is the maximum number of open connections.
	tcpConnections = 256
	tcpIdle        = 8 * time.Second
	ioTimeout      = 2 * time.Second
)

// Run answers questions until ctx ends. The calling goroutine creates the sockets, so the
// caller may lock it to a network namespace. Questions about the cluster's names wait until
// Source is synced.
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
	cfg.Log.InfoContext(ctx, "cluster DNS is up", "address", udp.LocalAddr().String(), "domain", handler.zone.domain)
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
		// A server that has not started yet refuses to shut down, so also close the sockets
		// that it would serve.
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

// listen opens both sockets on the same port. If the port is chosen by the system for TCP,
// it may be in use for UDP; then another one is tried.
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

// canonical returns a name in lower case with a final dot.
func canonical(name string) string {
	return strings.ToLower(mdns.Fqdn(name))
}
