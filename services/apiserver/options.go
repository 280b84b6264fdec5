package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/front/grpcweb"
	"keelson.dev/services/apiserver/internal/snapshot"
	"keelson.dev/services/apiserver/internal/token"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/internal/identity"
)

// options are the flags.
type options struct {
	service *boot.Service

	dataDir                string
	shutdownDelay          time.Duration
	memory                 bool
	listenGRPC, listenREST string
	webOrigins             []string
	balancers              []string
	advertise, name        string
	peerHost               string
	serviceAccountKey      string
	serviceAccountIssuer   string
	serviceRange           string
	nodePortRange          string
	notReadySeconds        int64
	unreachableSeconds     int64
	podSecurity            admission.Exemptions
	denyExternalIPs        bool
	etcdListenClient       string
	etcdServers            []string
	members                []string
	listenPeer             string
	etcdMembers            []string
	etcdListenPeer         string
	join                   []string
	joinTokenFile          string
	peerIdentity           string
	member                 bool
	recover                bool
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ServiceFlags(fs)}
	fs.DurationVar(&o.shutdownDelay, "shutdown-delay", 500*time.Millisecond, "how long clients are still served after the signal to stop, while readiness already fails; at most 5 s. An apiserver that is alone does not wait")
	fs.StringVar(&o.dataDir, "data-dir", "", "directory of the embedded etcd")
	fs.BoolVar(&o.memory, "memory", false, "keep all state in memory, for tests: it is gone when the process ends")
	fs.StringVar(&o.listenGRPC, "listen-grpc", "", "host:port of the gRPC API; several with commas, and without a host on every address. Default 127.0.0.1:6444, or :6444 with --members or --join")
	fs.StringVar(&o.listenREST, "listen-https", "", "host:port of the Kubernetes HTTP API; several with commas, and without a host on every address. Default 127.0.0.1:6443, or :6443 with --members or --join")
	fs.StringSliceVar(&o.webOrigins, "web-origins", nil, "origins, such as https://console.example.com, whose pages may call the gRPC services from browsers, by gRPC-Web on the HTTPS port and with a bearer token. Empty: gRPC-Web is not served")
	fs.StringSliceVar(&o.balancers, "balancers", nil, "addresses, CIDRs or host names of load balancers in front of this apiserver: the limit of connections from one address does not apply to them")
	fs.StringVar(&o.advertise, "advertise-address", "", "IP address at which pods and other machines reach this apiserver; empty: this machine's first IPv4 address")
	fs.StringVar(&o.name, "name", "apiserver-0", "name of this apiserver and of its etcd member")
	fs.StringVar(&o.serviceAccountKey, "service-account-key", "", "private key (PEM) that signs and verifies service account tokens")
	fs.StringVar(&o.serviceAccountIssuer, "service-account-issuer", "https://kubernetes.default.svc.cluster.local", "issuer of service account tokens")
	fs.StringVar(&o.serviceRange, "service-cluster-ip-range", "10.96.0.0/16", "range of Services' cluster IPs")
	fs.StringVar(&o.nodePortRange, "service-node-port-range", "30000-32767", "range of Services' node ports")
	fs.Int64Var(&o.notReadySeconds, "default-not-ready-toleration-seconds", 300, "seconds that pods without a toleration of their own tolerate a node that is not ready")
	fs.Int64Var(&o.unreachableSeconds, "default-unreachable-toleration-seconds", 300, "seconds that pods without a toleration of their own tolerate a node that is unreachable")
	fs.StringSliceVar(&o.podSecurity.Users, "pod-security-exempt-users", nil, "names of users whose pods the Pod Security Standards do not apply to")
	fs.StringSliceVar(&o.podSecurity.RuntimeClasses, "pod-security-exempt-runtime-classes", nil, "runtime classes whose pods the Pod Security Standards do not apply to")
	fs.StringSliceVar(&o.podSecurity.Namespaces, "pod-security-exempt-namespaces", nil, "namespaces that the Pod Security Standards do not apply to")
	fs.BoolVar(&o.denyExternalIPs, "deny-service-external-ips", false, "refuse new spec.externalIPs of Services; those of nodes, apiservers, pods and Services are always refused")
	fs.StringVar(&o.etcdListenClient, "etcd-listen-client", "", "host:port where etcd's own clients may connect, by client certificate; empty is nowhere")
	fs.StringSliceVar(&o.etcdServers, "etcd-servers", nil, "URLs of an etcd to use instead of the embedded one")
	fs.StringSliceVar(&o.members, "members", nil, "all apiservers that carry the stores together, as name=host:port of their --listen-peer; this one among them. Empty: this one is alone")
	fs.StringVar(&o.listenPeer, "listen-peer", ":6445", "host:port where the other members are served")
	fs.StringSliceVar(&o.etcdMembers, "etcd-members", nil, "the same members, as name=host:port of their --etcd-listen-peer")
	fs.StringVar(&o.peerHost, "peer-host", "", "host name or IP address at which the other members reach a --listen-peer and --etcd-listen-peer without a host; empty: --advertise-address. A name keeps its meaning when addresses change")
	fs.StringVar(&o.etcdListenPeer, "etcd-listen-peer", ":2380", "host:port where the etcd of the other members connects")
	fs.StringVar(&o.peerIdentity, "peer-identity", "", "directory with the certificate that this apiserver shows to the others: tls.crt, tls.key and ca.crt of the CA of peers. Empty: \"peer\" in --identity, if it is there")
	fs.StringSliceVar(&o.join, "join", nil, "host:port of apiservers' gRPC APIs: join the members that carry the stores there. Once there is data in --data-dir, the members are read from there")
	fs.StringVar(&o.joinTokenFile, "join-token-file", "", "file with a token from `keel member token`, to --join with; without it, the user of --identity must have the right to join")
	fs.BoolVar(&o.member, "member", true, "become a member of the stores of --join; false only uses them")
	fs.BoolVar(&o.recover, "recover", false, "turn the stores in --data-dir into stores of one member, and exit; for when too many of the other members are lost for good. No apiserver may be running")
	return o
}

// oneStore reports whether one store holds transient kinds too.
func (o *options) oneStore() bool { return o.memory || len(o.etcdServers) > 0 }

// config is what the flags mean.
type config struct {
	*options
	Identity, OpsAddress   string
	ListenGRPC, ListenREST string
	Advertise              netip.Addr
	Balancers              *balancers
	Keys                   *token.Keys
	Services               netip.Prefix
	// Peers are the members at their --listen-peer, EtcdPeers at their
	// --etcd-listen-peer.
	Peers, EtcdPeers peers
	// PeerAddress and EtcdAddress are where the other members reach this one.
	PeerAddress, EtcdAddress string
	// FirstPort and LastPort bound the range of node ports; both are part of it.
	FirstPort, LastPort int32
	// CA is the cluster's CA in PEM.
	CA []byte
}

// config checks the flags and reads the files that they name. Errors are usage errors.
func (o *options) config() (*config, error) {
	c := &config{
		options: o, Identity: o.service.Identity, OpsAddress: o.service.OpsAddress,
		ListenGRPC: cmp.Or(o.listenGRPC, o.defaultHost()+":6444"), ListenREST: cmp.Or(o.listenREST, o.defaultHost()+":6443"),
	}
	if o.service.Identity == "" {
		return nil, boot.Invalid("--identity is required")
	}
	for _, set := range []func() error{
		c.checkOrigins, c.setPaths, c.checkDataDir, c.setMembers, c.setKeys, c.setRanges, c.checkPods, c.setAddresses, c.ownAddresses,
	} {
		if err := set(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// checkOrigins checks --web-origins.
func (c *config) checkOrigins() error {
	for _, origin := range c.webOrigins {
		if err := grpcweb.CheckOrigin(origin); err != nil {
			return boot.Invalid("--web-origins: %w", err)
		}
	}
	return nil
}

// setPaths makes paths absolute, so that the files can be read again whatever the working
// directory is, and reads the cluster's CA.
func (c *config) setPaths() error {
	for _, path := range []*string{&c.Identity, &c.dataDir, &c.peerIdentity} {
		if *path != "" {
			abs, err := filepath.Abs(*path)
			if err != nil {
				return boot.Invalid("%w", err)
			}
			*path = abs
		}
	}
	var err error
	if c.CA, err = os.ReadFile(filepath.Join(c.Identity, identity.CAFile)); err != nil {
		return boot.Invalid("--identity: %w", err)
	}
	return nil
}

func (c *config) checkDataDir() error {
	if c.oneStore() {
		return nil
	}
	if c.dataDir == "" {
		return boot.Invalid("--data-dir is required")
	}
	if err := boot.WritableDir("data-dir", c.dataDir, 0o700); err != nil {
		return err
	}
	if err := snapshot.Unfinished(c.dataDir); err != nil {
		return boot.Invalid("--data-dir: %w", err)
	}
	return nil
}

func (c *config) setMembers() (err error) {
	if c.Peers, err = parsePeers(c.members, c.name); err != nil {
		return boot.Invalid("--members: %w", err)
	}
	if c.EtcdPeers, err = parsePeers(c.etcdMembers, c.name); err != nil {
		return boot.Invalid("--etcd-members: %w", err)
	}
	switch {
	case !slices.Equal(c.Peers.names(), c.EtcdPeers.names()):
		return boot.Invalid("--members and --etcd-members must name the same apiservers")
	case len(c.Peers) > 0 && c.oneStore():
		return boot.Invalid("--members goes neither with --memory nor with --etcd-servers")
	case len(c.join) > 0 && (len(c.Peers) > 0 || c.oneStore()):
		return boot.Invalid("--join goes with none of --members, --memory and --etcd-servers")
	case !c.member && len(c.join) == 0:
		return boot.Invalid("--member=false needs --join: it names the apiservers whose stores are used")
	case c.recover && c.oneStore():
		return boot.Invalid("--recover goes neither with --memory nor with --etcd-servers")
	}
	return nil
}

func (c *config) setKeys() error {
	if c.serviceAccountKey == "" {
		return boot.Invalid("--service-account-key is required")
	}
	key, err := os.ReadFile(c.serviceAccountKey)
	if err != nil {
		return boot.Invalid("--service-account-key: %w", err)
	}
	if c.Keys, err = token.ParseKeys(key); err != nil {
		return boot.Invalid("--service-account-key: %s: %w", c.serviceAccountKey, err)
	}
	return nil
}

func (c *config) setRanges() (err error) {
	if c.Services, err = netip.ParsePrefix(c.serviceRange); err != nil {
		return boot.Invalid("--service-cluster-ip-range: %w", err)
	}
	if c.FirstPort, c.LastPort, err = parsePorts(c.nodePortRange); err != nil {
		return boot.Invalid("--service-node-port-range: %w", err)
	}
	if c.shutdownDelay < 0 || c.shutdownDelay > 5*time.Second {
		return boot.Invalid("--shutdown-delay %s: want 0 to 5s", c.shutdownDelay)
	}
	return nil
}

// checkPods checks the flags of admission.
func (c *config) checkPods() error {
	if c.notReadySeconds < 0 || c.unreachableSeconds < 0 {
		return boot.Invalid("toleration seconds must not be negative")
	}
	if err := c.podSecurity.Check(); err != nil {
		return boot.Invalid("--pod-security-exempt-…: %w", err)
	}
	return nil
}

func (c *config) setAddresses() (err error) {
	if c.advertise != "" {
		if c.Advertise, err = netip.ParseAddr(c.advertise); err != nil {
			return boot.Invalid("--advertise-address: %w", err)
		}
	}
	if c.Balancers, err = parseBalancers(c.balancers); err != nil {
		return boot.Invalid("--balancers: %w", err)
	}
	return nil
}

// defaultHost is the host that the APIs listen on unless a flag names it: an apiserver that
// is alone serves its machine only, one of several listens on all addresses.
func (o *options) defaultHost() string {
	if len(o.members) == 0 && len(o.join) == 0 {
		return "127.0.0.1"
	}
	return ""
}

// listen opens a port whose connections are limited.
func (c *config) listen(name, address string) (net.Listener, error) {
	l, err := listenAll(address)
	if err != nil {
		return nil, err
	}
	return connlimit.Wrap(l, connlimit.Limits{Name: name, Near: c.Balancers.near}), nil
}

// ownAddresses sets where the other members reach this one: what --members says, or the
// addresses that it listens on.
func (c *config) ownAddresses() error {
	c.PeerAddress, c.EtcdAddress = c.Peers[c.name], c.EtcdPeers[c.name]
	if len(c.join) == 0 || !c.member {
		return nil
	}
	var err error
	if c.PeerAddress, err = c.reached(c.listenPeer); err != nil {
		return boot.Invalid("--listen-peer: %w", err)
	}
	if c.EtcdAddress, err = c.reached(c.etcdListenPeer); err != nil {
		return boot.Invalid("--etcd-listen-peer: %w", err)
	}
	return nil
}

// reached returns the address at which others reach a listener on host:port.
func (c *config) reached(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		switch {
		case c.peerHost != "":
			host = c.peerHost
		case c.Advertise.IsValid():
			host = c.Advertise.String()
		default:
			return "", errors.New("it names no address for the other members; set --peer-host or --advertise-address")
		}
	}
	return net.JoinHostPort(host, port), nil
}

// parsePorts parses FIRST-LAST.
func parsePorts(s string) (first, last int32, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q: want FIRST-LAST", s)
	}
	x, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	y, err := strconv.ParseUint(b, 10, 16)
	return int32(x), int32(y), err
}

// address returns the address at which pods reach the HTTPS listener.
func (c *config) address(listener net.Addr) (netip.AddrPort, error) {
	port := listener.(*net.TCPAddr).AddrPort().Port()
	if c.Advertise.IsValid() {
		return netip.AddrPortFrom(c.Advertise, port), nil
	}
	if own := listener.(*net.TCPAddr).AddrPort().Addr(); own.IsValid() && !own.IsUnspecified() {
		return netip.AddrPortFrom(own.Unmap(), port), nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find out an address to advertise: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().Is4() && ip.Unmap().IsGlobalUnicast() {
				return netip.AddrPortFrom(ip.Unmap(), port), nil
			}
		}
	}
	return netip.AddrPort{}, boot.Invalid("--advertise-address is required: this machine has no address but loopback")
}
