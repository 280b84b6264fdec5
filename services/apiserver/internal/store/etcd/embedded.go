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

// EmbeddedConfig says how to run etcd in this process.
type EmbeddedConfig struct {
	// Name of the member; default "default".
	Name string
	// Peers, if set, makes it one of several members; without, it is alone and
	// speaks to nobody.
	Peers *PeerConfig
	// Dir holds its data; made with mode 0700.
	Dir string
	// ListenClient, if set, is an address (host:port) where etcd's own clients
	// may connect. It requires ClientTLS and ClientNames: the common names of the
	// certificates that are let in, because whoever gets in may do everything.
	ListenClient string
	ClientTLS    TLSFiles
	ClientNames  []string
	// QuotaBytes of the backend; default 8 GiB.
	QuotaBytes int64
	Log        *slog.Logger
}

// TLSFiles name a certificate, its key and the authority of the other side.
type TLSFiles struct{ Cert, Key, CA string }

// Embedded is a store in an etcd of this process.
type Embedded struct {
	*Store
	etcd    *embed.Etcd
	client  *clientv3.Client
	closing *atomic.Bool
	peers   *peers // nil when it is alone
	release func()

	// file is etcd's own. mapped is held while its mapping must stay where it is, or
	// is taken away; if others reach etcd over a port, operators or other members,
	// they can replace it at any time.
	file   string
	open   bool
	mapped sync.Mutex
	// saving is held for reading while a snapshot is read, and for writing by what
	// must not meet one.
	saving sync.RWMutex
}

// setWAL sets the size of a segment of the write-ahead log: two of them are
// allocated at all times, and etcd's 64 MB each is much for a small cluster.
var setWAL = sync.OnceFunc(func() { wal.SegmentSizeBytes = 16 << 20 })

// Start runs etcd and waits until it takes writes; of several members, until
// enough of them are there.
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
		case <-p.outlived: // told late
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
		p.run(func() { // without its place, what it is asked would wait for nothing
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
	}, nil
}

// startEtcd runs etcd and waits until it is ready. then, if any, is called in
// between, when it answers its peers.
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
			// A member of several is ready when it can be read. What etcd itself waits for,
			// that it has told its name, takes 6 s where its first proposal is lost.
			if e.Server.Leader() == 0 || !readable(ctx, e.Server) {
				continue
			}
			return e, nil
		case <-e.Server.ReadyNotify():
			return e, nil
		case <-e.Server.StopNotify():
			err = errors.New("it has ended; was this member removed?")
		case err = <-e.Err():
		case <-ctx.Done():
			err = ctx.Err()
		}
		e.Close()
		return nil, err
	}
}

// readable tells whether a linearizable read succeeds now.
func readable(ctx context.Context, s *etcdserver.EtcdServer) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.LinearizableReadNotify(ctx) == nil
}

// joinPeers tells etcd who the other members are and opens the ways to them.
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
	// A member that was away for less than so many entries gets those instead of
	// the whole store.
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
	// Nobody but this process speaks to a single member: it listens nowhere, and
	// its peer URL is only a name.
	peer := url.URL{Scheme: "unix", Host: seatOf(cfg.Name, "")}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, []url.URL{peer}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	if c.ListenClient != "" {
		if len(c.ClientNames) == 0 {
			return nil, errors.New("etcd's client address needs the names of those who may use it")
		}
		if c.ClientTLS.Cert == "" || c.ClientTLS.Key == "" || c.ClientTLS.CA == "" {
			return nil, errors.New("etcd's client address needs a certificate, a key and an authority")
		}
		u := url.URL{Scheme: "https", Host: c.ListenClient}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{u}, []url.URL{u}
		cfg.ClientTLSInfo = etcdtls.TLSInfo{
			CertFile: c.ClientTLS.Cert, KeyFile: c.ClientTLS.Key, TrustedCAFile: c.ClientTLS.CA, ClientCertAuth: true, AllowedCNs: c.ClientNames,
		}
	}
	// A single member elects itself after one to two election times, in which
	// nobody else has a say: so they are short, though each tick costs an idle process.
	cfg.TickMs, cfg.ElectionMs = 50, 250
	cfg.PreVote = true
	cfg.QuotaBackendBytes = 8 << 30
	if c.QuotaBytes > 0 {
		cfg.QuotaBackendBytes = c.QuotaBytes
	}
	// Entries of the log are kept in memory for followers that lag; there are none.
	cfg.SnapshotCatchUpEntries = 500
	// The backend's file is synced that often, or after so many writes; the log,
	// which is synced at each write, has what it lacks. At rest each renewal of a
	// Lease would be a sync of the file too, so it waits longer than etcd's 100 ms;
	// under load there are no more between two syncs than 100 ms bring.
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

// inProcess calls the server's own functions.
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

// Close stops etcd. Calls under way fail.
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

// handOverTime is how long a leader that ends waits for another to take over:
// they may all be ending.
const handOverTime = 500 * time.Millisecond

// handOver makes another member the leader, if there is one, and stops the server.
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

// giveBack lets go of the mapped pages of etcd's file. A compaction reads all of
// it, and a start maps it whole; as the kernel counts, it is this process' memory
// from then on, though it is page cache.
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
		e.log.Warn("mapped pages of the store's file stay in memory", "error", err)
	}
}

// Stopped is closed when etcd has ended, by Close or by itself.
func (e *Embedded) Stopped() <-chan struct{} { return e.etcd.Server.StopNotify() }
