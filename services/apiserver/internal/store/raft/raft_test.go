package raft

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/storetest"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/loopbacktest"
	"keelson.dev/services/internal/rpc"
)

func TestMain(m *testing.M) {
	if f := children[os.Getenv("RAFT_TEST_CHILD")]; f != nil {
		f()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func quiet() *slog.Logger {
	level := slog.LevelError
	if os.Getenv("RAFT_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// single opens a store with one member.
func single(t testing.TB, c Config) *Store {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.Name == "" {
		c.Name = "a"
	}
	c.Log = quiet()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// cluster is a cluster whose members talk over mutual TLS on loopback.
type cluster struct {
	testing.TB
	ca      *identitytest.CA
	names   []string
	members map[string]*clusterMember
	change  func(*Config)
}

type clusterMember struct {
	*Store
	service *Service
	dir     string
	addr    string
	down    func() // stops its server
}

func newCluster(t testing.TB, n int, change func(*Config)) *cluster {
	t.Helper()
	c := &cluster{TB: t, ca: identitytest.NewCA(t), members: map[string]*clusterMember{}, change: change}
	for i := range n {
		name := string(rune('a' + i))
		c.names = append(c.names, name)
		c.members[name] = &clusterMember{dir: t.TempDir(), addr: loopbacktest.Address(t)}
	}
	c.start(c.names...)
	return c
}

// start starts members and waits until they can be read.
func (c *cluster) start(names ...string) {
	c.Helper()
	opened := make(chan error, len(names))
	for _, name := range names {
		go func() { opened <- c.open(name) }()
	}
	for range names {
		if err := <-opened; err != nil {
			c.Fatal(err)
		}
	}
}

func (c *cluster) open(name string) error {
	cfg, err := c.serve(name)
	if err != nil {
		return err
	}
	return c.join(name, cfg)
}

// serve starts a member's server.
func (c *cluster) serve(name string) (Config, error) {
	m := c.members[name]
	id := c.ca.Source(c, "kube-apiserver")
	m.service = NewService(Certificates(func() *x509.CertPool { return id.Current().Roots }, "kube-apiserver"))
	server := rpc.NewServer(rpc.ServerConfig{Identity: id})
	m.service.Register(server)
	l, err := net.Listen("tcp", m.addr)
	if err != nil {
		return Config{}, err
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	m.down = sync.OnceFunc(func() {
		server.Stop()
		stop()
		<-served
	})
	cfg := Config{
		Name: name, Members: c.names, Dir: m.dir, Service: m.service, Log: quiet(),
		Dial: func(member string) (grpc.ClientConnInterface, error) {
			return rpc.Dial(id, []string{c.members[member].addr}, "raft-test")
		},
	}
	if c.change != nil {
		c.change(&cfg)
	}
	return cfg, nil
}

// join opens a member whose server is running.
func (c *cluster) join(name string, cfg Config) error {
	m := c.members[name]
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	s, err := Open(ctx, cfg)
	if err != nil {
		m.down()
		return fmt.Errorf("member %s: %w", name, err)
	}
	m.Store = s
	c.Cleanup(func() { c.stop(name) })
	return nil
}

// stop stops a member. Its directory stays.
func (c *cluster) stop(name string) {
	m := c.members[name]
	m.Store.Close()
	m.down()
}

// isolate cuts a member off: neither it nor the others reach each other.
func (c *cluster) isolate(name string) {
	c.members[name].transport.stop()
	c.members[name].down()
}

// empty removes the data of a stopped member.
func (c *cluster) empty(name string) {
	c.Helper()
	if err := os.RemoveAll(c.members[name].dir); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) put(s store.Store, key, value string) store.Revision {
	c.Helper()
	return put(c, s, key, value)
}

func put(t testing.TB, s store.Store, key, value string) store.Revision {
	t.Helper()
	v, err := s.Commit(context.Background(), []store.Write{{
		Key: key, Value: []byte(value), Expect: store.Any,
		Settled: func(found []byte) bool { return string(found) == value },
	}})
	if err != nil || v[0].Err != nil {
		t.Fatalf("write %s: %v %+v", key, err, v)
	}
	return v[0].Revision
}

// leader waits until all running members agree on a leader.
func (c *cluster) leader() (leader *Store, followers []*Store) {
	c.Helper()
	eventually(c, "all members agree on a leader", func() bool {
		leader, followers = nil, nil
		for _, name := range c.names {
			m := c.members[name]
			switch {
			case m.closed.Load():
			case m.Status().Leader == string(m.id):
				leader = m.Store
			default:
				followers = append(followers, m.Store)
			}
		}
		return leader != nil
	})
	return leader, followers
}

// eventually polls a condition for a bounded time.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(60 * time.Second)
	for !f() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("timed out waiting until " + what)
		}
	}
}

// faulty is a store whose attempts to write can be made to fail.
type faulty struct{ *Store }

func (f faulty) Inject(plan func(*store.Write, int) storetest.Fault) {
	if plan == nil {
		f.fault = nil
		return
	}
	f.fault = func(w *store.Write, attempt int) fault {
		return map[storetest.Fault]fault{
			storetest.Refuse: refuse, storetest.LoseRequest: loseRequest, storetest.LoseAnswer: loseAnswer,
		}[plan(w, attempt)]
	}
}

func (f faulty) Hurry(hurry bool) {
	f.settleTime = settleTime
	if hurry {
		f.settleTime = 2 * time.Second
	}
}

// calm avoids elections on a busy machine, for tests that hold one of their own: after an
// election, the outcome of a write without Settled would be unknown.
func calm(cfg *Config) { cfg.Timing.Election = 2 * time.Second }

// steady avoids elections on a machine that stalls for seconds, for tests that hold none: the
// founder of a cluster is elected at once.
func steady(cfg *Config) { cfg.Timing.Election = 10 * time.Second }

func (s *Store) forTest() store.Store { return faulty{s} }

func TestConformanceOfOneMember(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return single(t, Config{}).forTest() })
}

func TestConformanceOfAFollower(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		_, followers := newCluster(t, 3, steady).leader()
		return followers[0].forTest()
	})
}

// anyOf is a client that uses another member for each call.
type anyOf struct {
	members []store.Store
	next    chan int
}

func (a *anyOf) pick() store.Store {
	i := <-a.next
	a.next <- i + 1
	return a.members[i%len(a.members)]
}

func (a *anyOf) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	return a.pick().Get(ctx, key)
}

func (a *anyOf) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	return a.pick().List(ctx, prefix, o)
}

func (a *anyOf) Commit(ctx context.Context, w []store.Write) ([]store.Verdict, error) {
	return a.pick().Commit(ctx, w)
}

func (a *anyOf) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	return a.pick().Watch(ctx, prefix, after)
}

func (a *anyOf) Revision(ctx context.Context) (store.Revision, error) { return a.pick().Revision(ctx) }

func (a *anyOf) Compact(ctx context.Context, rev store.Revision) error {
	return a.pick().Compact(ctx, rev)
}

func TestConformanceOfAnyMember(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store {
		c := newCluster(t, 3, steady)
		a := &anyOf{next: make(chan int, 1)}
		a.next <- 0
		for _, name := range c.names {
			a.members = append(a.members, c.members[name].Store)
		}
		return a
	})
}
