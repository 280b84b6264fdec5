package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	etcdtls "go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"keelson.dev/services/apiserver/internal/seldom"
	"keelson.dev/services/apiserver/internal/store"
)

// EmbeddedConfig configures an etcd server in this process.
type EmbeddedConfig struct {
	// Name is the name of the member; default "default".
	Name string
	// Peers configures one of several members. Nil means a single member, which has no peers.
	Peers *PeerConfig
	// Dir holds etcd's data. It is created with mode 0700.
	Dir string
	// ListenClient, if set, is the address (host:port) at which etcd's own clients may connect.
	// It requires ClientTLS and ClientNames, the common names of the certificates that are
	// accepted: such clients may do everything.
	ListenClient string
	ClientTLS    TLSFiles
	ClientNames  []string
	// QuotaBytes is the quota of the backend; default 8 GiB.
	QuotaBytes int64
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// TLSFiles are the paths of a certificate, its key and the CA of the other side.
type TLSFiles struct{ Cert, Key, CA string }

// Embedded is a store in an etcd server in this process.
type Embedded struct {
	*Store
	etcd    *embed.Etcd
	client  *clientv3.Client
	closing *atomic.Bool
	peers   *peers // nil for a single member
	release func()

	// file is the backend's file. mapped is held while its mapping must not move or is being
	// dropped. open is true if others can reach etcd, clients at its port or other members:
	// they can make it replace the mapping at any time.
	file   string
	open   bool
	mapped sync.Mutex
	// saving is held for reading while a snapshot is being read, and for writing by what must
	// not run at the same time.
	saving sync.RWMutex

	spaceFields
}

// setWAL sets the size of the segments of the write-ahead log. Two of them are always
// allocated, and etcd's default of 64 MB each is large for a small cluster.
var setWAL = sync.OnceFunc(func() { wal.SegmentSizeBytes = 16 << 20 })

// Start runs etcd and waits until it accepts writes. If there are several members, that takes a
// quorum.
func Start(ctx context.Context, c EmbeddedConfig) (_ *Embedded, err error) {
	setWAL()
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, fmt.Errorf("etcd's directory: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd's directory: %w", err)
	}
	if exists(filepath.Join(c.Dir, recovered)) {
		return nil, fmt.Errorf("etcd in %s: a recovery was interrupted; repeat it", c.Dir)
	}
	closing := &atomic.Bool{}
	cfg, err := c.embed(closing)
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	release := stop
	defer func() {
		if err != nil {
			release()
		}
	}()
	var p *peers
	if c.Peers != nil {
		if p, err = c.startPeers(); err != nil {
			return nil, err
		}
		release = sync.OnceFunc(func() {
			stop()
			p.close()
			leaveSockets()
		})
		if err := p.stillMember(ctx, hasLog(c.Dir)); err != nil {
			return nil, fmt.Errorf("etcd's member %s: %w", c.Name, err)
		}
		if err := c.joinPeers(ctx, p, cfg); err != nil {
			return nil, err
		}
	}
	started := func(e *embed.Etcd) error {
		if p == nil {
			return nil
		}
		p.serving.Store(true)
		p.run(func() { p.follow(run, e.Server) })
		p.run(func() { p.endOutlived(run, e.Server) })
		return p.joined()
	}
	e, err := startEtcd(ctx, cfg, started)
	if err != nil && p != nil {
		select {
		case <-p.outlived: // reported by a peer only now
			err = errOutlived
		default:
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", c.Dir, err)
	}
	s := e.Server
	client := v3client.New(s)
	proposalTime := localTime
	if p != nil {
		proposalTime = forwardTime
	}
	st := newStore(inProcess(s, client), proposalTime, c.Log)
	if p != nil {
		p.run(func() { st.followLeader(run, s) })
		p.run(func() { // a removed member must fail its calls instead of letting them wait
			<-s.StopNotify()
			st.closed.Store(true)
		})
	}
	for {
		if _, err = st.Revision(ctx); err == nil {
			break
		}
		if !again(err) || ctx.Err() != nil {
			_ = client.Close()
			e.Close()
			return nil, fmt.Errorf("start etcd in %s: %w", c.Dir, err)
		}
	}
	return &Embedded{
		Store: st, etcd: e, client: client, closing: closing, peers: p, release: release,
		file: filepath.Join(c.Dir, "member", "snap", "db"), open: c.ListenClient != "" || p != nil,
		spaceFields: spaceFields{name: cfg.Name, quota: cfg.QuotaBackendBytes},
	}, nil
}

// startEtcd runs etcd and waits until it is ready. The functions in then are called once it
// answers its peers.
func startEtcd(ctx context.Context, cfg *embed.Config, then ...func(*embed.Etcd) error) (*embed.Etcd, error) {
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	for _, f := range then {
		if err := f(e); err != nil {
			e.Close()
			return nil, err
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			// A member of several is ready when it can be read. What etcd waits for itself, the
			// publication of its name, takes 6 s if its first proposal is lost.
			if e.Server.Leader() == 0 || !readable(ctx, e.Server) {
				continue
			}
			return e, nil
		case <-e.Server.ReadyNotify():
			return e, nil
		case <-e.Server.StopNotify():
			err = errors.New("etcd has stopped; was this member removed?")
		case err = <-e.Err():
		case <-ctx.Done():
			err = ctx.Err()
		}
		e.Close()
		return nil, err
	}
}

// readable reports whether a linearizable read succeeds now.
func readable(ctx context.Context, s *etcdserver.EtcdServer) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.LinearizableReadNotify(ctx) == nil
}

// joinPeers configures etcd with the other members and opens the connections to them.
func (c *EmbeddedConfig) joinPeers(ctx context.Context, p *peers, cfg *embed.Config) error {
	cfg.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: p.local}}
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "unix", Host: p.seat()}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.TickMs, cfg.ElectionMs = 50, 500
	if d := c.Peers.Heartbeat; d > 0 {
		cfg.TickMs = uint(d.Milliseconds())
	}
	if d := c.Peers.Election; d > 0 {
		cfg.ElectionMs = uint(d.Milliseconds())
	}
	// A member that missed fewer entries than this receives them instead of the whole store.
	cfg.SnapshotCatchUpEntries = 5000
	for _, t := range p.all() {
		if t.Seat != p.seat() {
			if err := p.openOutlet(t.Seat); err != nil {
				return err
			}
		}
	}
	if hasLog(c.Dir) {
		return nil
	}
	return p.begin(ctx, c.Peers.Members, cfg)
}

func (c *EmbeddedConfig) embed(closing *atomic.Bool) (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Dir = c.Dir
	if c.Name != "" {
		cfg.Name = c.Name
	}
	// A single member has no peers: it listens nowhere, and its peer URL is only a name.
	peer := url.URL{Scheme: "unix", Host: seatOf(cfg.Name, "")}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, []url.URL{peer}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	if c.ListenClient != "" {
		if len(c.ClientNames) == 0 {
			return nil, errors.New("etcd's client address requires the names of the clients that may use it")
		}
		if c.ClientTLS.Cert == "" || c.ClientTLS.Key == "" || c.ClientTLS.CA == "" {
			return nil, errors.New("etcd's client address requires a certificate, a key and a CA")
		}
		u := url.URL{Scheme: "https", Host: c.ListenClient}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{u}, []url.URL{u}
		cfg.ClientTLSInfo = etcdtls.TLSInfo{
			CertFile: c.ClientTLS.Cert, KeyFile: c.ClientTLS.Key, TrustedCAFile: c.ClientTLS.CA, ClientCertAuth: true, AllowedCNs: c.ClientNames,
		}
	}
	// A single member elects itself after one to two election timeouts. They are short, because
	// no other member depends on them, although each tick costs an idle process CPU time.
	cfg.TickMs, cfg.ElectionMs = 50, 250
	cfg.PreVote = true
	cfg.QuotaBackendBytes = 8 << 30
	if c.QuotaBytes > 0 {
		cfg.QuotaBackendBytes = c.QuotaBytes
	}
	// Log entries are kept in memory for followers that lag behind; a single member has none.
	cfg.SnapshotCatchUpEntries = 500
	// The backend's file is synced at this interval, or after this many writes. The log, which
	// is synced with each write, has what the file lacks. On an idle cluster, each renewal of a
	// Lease would also sync the file, so the interval is longer than etcd's 100 ms. Under load,
	// the limit allows no more writes between two syncs than arrive in 100 ms.
	cfg.BackendBatchInterval, cfg.BackendBatchLimit = 500*time.Millisecond, 2500
	cfg.MaxTxnOps = 128
	cfg.MaxRequestBytes = 4 << 20
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "0"
	cfg.WarningApplyDuration = 500 * time.Millisecond
	cfg.WarningUnaryRequestDuration = time.Second
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(slogCore{log: c.Log, closing: closing, seldom: new(seldom.Log)}))
	return cfg, nil
}

// inProcess returns a transport that calls the server's functions directly.
func inProcess(s *etcdserver.EtcdServer, client *clientv3.Client) transport {
	return transport{
		local: true,
		kv:    adapter.KvServerToKvClient(v3rpc.NewQuotaKVServer(s)),
		lease: client.Lease,
		revision: func(ctx context.Context) (int64, error) {
			if err := s.LinearizableReadNotify(ctx); err != nil {
				return 0, err
			}
			return s.KV().Rev(), nil
		},
		watch: func(_ context.Context, prefix string, from int64) (store.Watch, error) {
			return watchInProcess(s, prefix, from)
		},
	}
}

// Close stops etcd. Calls in progress fail.
func (e *Embedded) Close() {
	if e.closing.Swap(true) {
		return
	}
	e.closed.Store(true)
	_ = e.client.Close()
	if e.peers != nil {
		e.handOver()
	}
	e.saving.Lock()
	defer e.saving.Unlock()
	e.mapped.Lock()
	defer e.mapped.Unlock()
	e.etcd.Close()
	e.release()
}

// handOverTime bounds how long a stopping leader waits until another member has taken over,
// because all of them may be stopping.
const handOverTime = 500 * time.Millisecond

// handOver transfers leadership to another member, if there is one, and stops the server.
func (e *Embedded) handOver() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.etcd.Server.TryTransferLeadershipOnShutdown()
	}()
	select {
	case <-done:
	case <-time.After(handOverTime):
	}
	e.etcd.Server.HardStop()
	<-done
}

// giveBack releases the mapped pages of the backend's file. A compaction reads the whole file,
// and a start maps it completely; the kernel then counts it as memory of this process, although
// it is page cache.
func (e *Embedded) giveBack() {
	e.mapped.Lock()
	defer e.mapped.Unlock()
	select {
	case <-e.Stopped():
		return
	default:
	}
	if e.open || e.closed.Load() {
		return
	}
	if err := giveBack(e.file); err != nil {
		e.log.WarnContext(context.Background(), "cannot release the mapped pages of the store's file", "error", err)
	}
}

// Stopped is closed when etcd has stopped, by Close or by itself.
func (e *Embedded) Stopped() <-chan struct{} { return e.etcd.Server.StopNotify() }
