package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/storetest"
	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/loopbacktest"
	"keelson.dev/services/internal/pacetest"
)

// site runs the members of a test in this process, on loopback.
type site struct {
	testing.TB
	dir  string
	ca   *identitytest.CA
	id   *identity.Source
	peer *peertls.Identity
	mu   sync.Mutex
	// addresses are the addresses in the configurations.
	addresses map[string]string
	running   map[string]*Embedded
	// election is the members' election timeout. 0 means the default.
	election time.Duration
	quota    int64 // 0 means the default
}

func newSite(t testing.TB, names ...string) *site {
	t.Helper()
	s := &site{TB: t, dir: t.TempDir(), addresses: map[string]string{}, running: map[string]*Embedded{}}
	s.ca = identitytest.NewCA(t)
	s.id = s.ca.Source(t, "kube-apiserver")
	var err error
	if s.peer, err = peertls.Load(s.id, ""); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		s.addresses[n] = loopbacktest.Address(t)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.running {
			wg.Go(e.Close)
		}
		wg.Wait()
	})
	return s
}

func (s *site) config(name, address string) EmbeddedConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := maps.Clone(s.addresses)
	return EmbeddedConfig{
		Name: name, Dir: filepath.Join(s.dir, name), Log: s.log(name), QuotaBytes: s.quota,
		Peers: &PeerConfig{Listen: address, Identity: s.peer, Members: known, Sockets: filepath.Join(s.dir, "peers"), Election: s.election},
	}
}

func (s *site) log(name string) *slog.Logger {
	level := slog.LevelError + 4
	if os.Getenv("ETCD_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("member", name)
}

func (s *site) begin(ctx context.Context, name string) (*Embedded, error) {
	c := s.config(name, s.addresses[name])
	e, err := Start(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.mu.Lock()
	s.running[name] = e
	s.mu.Unlock()
	return e, nil
}

// start starts members at the same time.
func (s *site) start(names ...string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, n := range names {
		wg.Go(func() { _, errs[i] = s.begin(ctx, n) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			s.Fatal(err)
		}
	}
}

func (s *site) stop(names ...string) {
	var wg sync.WaitGroup
	for _, n := range names {
		wg.Go(s.at(n).Close)
	}
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		delete(s.running, n)
	}
}

// at returns a running member. It may be called while others are starting.
func (s *site) at(name string) *Embedded {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[name]
}

func (s *site) put(member, key, value string) store.Revision {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	v, err := s.at(member).Commit(ctx, []store.Write{{Key: key, Value: []byte(value), Expect: store.Any, Settled: func(b []byte) bool { return string(b) == value }}})
	if err != nil || v[0].Err != nil {
		s.Fatal(member, err, v)
	}
	return v[0].Revision
}

func (s *site) get(member, key, want string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	e, _, err := s.at(member).Get(ctx, key)
	if err != nil || string(e.Value) != want {
		s.Fatalf("%s: %s is %q, %v; want %q", member, key, e.Value, err, want)
	}
}

func (s *site) members(member string) []Member {
	s.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	all, err := s.at(member).Members(ctx)
	if err != nil {
		s.Fatal(err)
	}
	return all
}

func (s *site) leader() string {
	s.Helper()
	late := time.After(30 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); ; { // a busy machine may be holding an election
		for n := range s.running {
			for _, m := range s.members(n) {
				if m.Leader {
					return m.Name
				}
			}
			break
		}
		select {
		case <-tick.C:
		case <-late:
			s.Fatal("there is no leader")
		}
	}
}

// follower returns a member other than the leader.
func (s *site) follower(leader string) string {
	for n := range s.running {
		if n != leader {
			return n
		}
	}
	return ""
}

func TestMembersStartAgainWithNewAddresses(t *testing.T) {
	pace := pacetest.Start(t)
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	s.put("a", "/k", "0")
	for round := range 3 {
		s.stop("a", "b", "c")
		for n := range s.addresses {
			s.addresses[n] = loopbacktest.Address(t)
		}
		began := time.Now()
		s.start("a", "b", "c")
		value := fmt.Sprint(round + 1)
		for _, n := range []string{"a", "b", "c"} {
			s.get(n, "/k", fmt.Sprint(round))
		}
		s.put("b", "/k", value)
		if took := pace.Since(began); took > 5*time.Second {
			t.Errorf("serving after %v", took)
		} else {
			t.Logf("serving after %v", took)
		}
	}
}

// A member that removes the leader takes over the leadership first, so that it knows that the
// removal is committed.
func TestTheLeaderOfTwoIsRemoved(t *testing.T) {
	s := newSite(t, "a", "b")
	s.start("a", "b")
	s.put("a", "/k", "v")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	leader := s.leader()
	other := s.follower(leader)
	before := s.at(other).etcd.Server.Term()
	if err := s.at(other).Remove(ctx, leader); err != nil {
		t.Fatal(err)
	}
	if s.at(other).etcd.Server.Term() == before || !s.at(other).Leads() {
		t.Error("the leader committed its own removal")
	}
	s.stop(leader)
	s.voters(other, other)
	s.put(other, "/k", "w")
}

// A leader hands over while it keeps running, and can do so again.
func TestHandOver(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	for range 2 {
		leader := s.leader()
		if err := s.at(leader).HandOver(); err != nil {
			t.Fatal(err)
		}
		if s.at(leader).Leads() {
			t.Errorf("%s still leads", leader)
		}
		s.put(leader, "/k", "v")
	}
}

func TestConformanceOnAFollower(t *testing.T) {
	t.Parallel() // no other test with peers may be: a process has one directory of sockets
	storetest.Run(t, func(t *testing.T) store.Store {
		s := newSite(t, "a", "b", "c")
		// Avoid elections on a busy machine: after one, the outcome of a write without Settled
		// would be unknown.
		s.election = 2 * time.Second
		s.start("a", "b", "c")
		return s.at(s.follower(s.leader())).forTest()
	})
}

func names(all []Member) (voters, learners []string) {
	for _, m := range all {
		if m.Learner {
			learners = append(learners, m.Name)
		} else {
			voters = append(voters, m.Name)
		}
	}
	return voters, learners
}

func (s *site) voters(member string, want ...string) {
	s.Helper()
	voters, learners := names(s.members(member))
	if !slices.Equal(voters, want) || len(learners) > 0 {
		s.Fatalf("voters %v and learners %v, want voters %v", voters, learners, want)
	}
}

// arrive starts a member that must be added, in the background.
func (s *site) arrive(ctx context.Context, name string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := s.begin(ctx, name)
		done <- err
	}()
	return done
}

func (s *site) leave(name string) {
	s.stop(name)
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		s.Fatal(err)
	}
}

// A single member becomes three, loses a disk, and becomes two.
func TestMembersComeAndGo(t *testing.T) {
	s := newSite(t, "a")
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	alone, err := Start(ctx, EmbeddedConfig{Name: "a", Dir: filepath.Join(s.dir, "a"), Log: s.log("a")})
	if err != nil {
		t.Fatal(err)
	}
	if err := alone.Add(ctx, "b"); !errors.Is(err, ErrMember) {
		t.Fatalf("a member without peers added another: %v", err)
	}
	alone.Close()

	s.start("a")
	for i := range 200 {
		s.put("a", fmt.Sprintf("/k/%d", i%10), fmt.Sprint(i))
	}
	for _, n := range []string{"b", "c"} {
		s.addresses[n] = loopbacktest.Address(t)
		there := s.arrive(ctx, n)
		for range 2 { // adding it again succeeds
			if err := s.at("a").Add(ctx, n); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-there; err != nil {
			t.Fatal(err)
		}
		s.get(n, "/k/3", "193")
	}
	s.voters("c", "a", "b", "c")

	// It comes back at another address: the others learn of it.
	s.stop("b")
	s.addresses["b"] = loopbacktest.Address(t)
	s.start("b")
	s.put("b", "/moved", "b")

	// It comes back with an empty disk and the same configuration, and asks the others. It is a
	// member again once it is replaced.
	s.leave("b")
	s.put("a", "/lost", "disk")
	there := s.arrive(ctx, "b")
	for range 2 {
		if err := s.at("c").Replace(ctx, "b"); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-there; err != nil {
		t.Fatal(err)
	}
	s.get("b", "/lost", "disk")
	s.voters("b", "a", "b", "c")

	// The leader is removed.
	leader := s.leader()
	other := s.follower(leader)
	for range 2 {
		if err := s.at(other).Remove(ctx, leader); err != nil {
			t.Fatal(err)
		}
	}
	if voters, _ := names(s.members(other)); len(voters) != 2 || slices.Contains(voters, leader) {
		t.Fatalf("after the removal of %s, the voters are %v", leader, voters)
	}
	s.put(other, "/after", "removal")
	select {
	case <-s.at(leader).Stopped():
	case <-ctx.Done():
		t.Fatal("the removed member is still running")
	}
	s.stop(leader)
	if _, err := s.begin(ctx, leader); err == nil {
		t.Fatal("the removed member started again")
	}
}

// It is enough if each of two members knows one correct address: they announce the others to
// each other.
func TestMembersAnnounceAddressesToEachOther(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	s.put("a", "/k", "1")
	s.stop("a", "b", "c")
	stale := maps.Clone(s.addresses)
	fresh := map[string]string{"a": loopbacktest.Address(t), "b": loopbacktest.Address(t), "c": loopbacktest.Address(t)}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for name, knows := range map[string][]string{"a": {"b"}, "b": nil, "c": {"b"}} {
		known := maps.Clone(stale)
		for _, k := range knows {
			known[k] = fresh[k]
		}
		c := s.config(name, fresh[name])
		c.Peers.Members = known
		wg.Go(func() {
			e, err := Start(ctx, c)
			if err != nil {
				t.Error(err)
				return
			}
			s.mu.Lock()
			s.running[name] = e
			s.mu.Unlock()
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	// a and c know each other only through b. Without b they still do.
	s.put("b", "/k", "2")
	heard := func(name string) bool {
		for _, m := range s.members(name) {
			if m.Address != fresh[m.Name] {
				return false
			}
		}
		return true
	}
	for tick := time.NewTicker(20 * time.Millisecond); !heard("a") || !heard("c"); <-tick.C {
		if ctx.Err() != nil {
			t.Fatalf("a knows %v and c knows %v, want %v", s.members("a"), s.members("c"), fresh)
		}
	}
	s.stop("b")
	s.put("a", "/k", "3")
	s.get("c", "/k", "3")
}

// A member that has been closed opens no socket.
func TestAMemberThatEndedOpensNoSocket(t *testing.T) {
	s := newSite(t, "a", "b")
	s.start("a", "b")
	a := s.at("a")
	s.stop("a")
	const seat = "keelson-etcd-late_00000000"
	if err := a.peers.openOutlet(seat); err != nil {
		t.Fatal(err)
	}
	sockets.Lock()
	defer sockets.Unlock()
	if o := sockets.outlets[seat]; o != nil {
		_ = o.listener.Close()
		delete(sockets.outlets, seat)
		t.Error("a closed member opened a socket, which is never closed")
	}
}

// A voter that has lost its disk must not found a new cluster from its configuration, nor be
// accepted as the member that it was.
func TestEmptiedDiskIsNotAcceptedAsTheMember(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	s.put("a", "/k", "1")
	s.leave("b")
	before := s.members("a")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := s.begin(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a member without its disk started: %v", err)
	}
	if hasLog(filepath.Join(s.dir, "b")) {
		t.Fatal("a member without its disk founded a cluster")
	}
	if after := s.members("a"); len(after) != len(before) {
		t.Fatalf("members changed: %v", after)
	}
	// A member with only part of its disk does not start either.
	s.stop("c")
	if err := os.RemoveAll(filepath.Join(s.dir, "c", "member")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.begin(context.Background(), "c"); err == nil {
		t.Fatal("a member without its log started")
	}
}

func TestFoundersWaitForEachOther(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := s.begin(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one of three founded a cluster: %v", err)
	}
	s.start("a", "b", "c")
	s.voters("a", "a", "b", "c")
}

func TestRecoverFromOneSurvivor(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	var last store.Revision
	for i := range 50 {
		last = s.put("a", fmt.Sprintf("/k/%d", i), fmt.Sprint(i))
	}
	s.stop("b", "c")
	s.stop("a")
	for _, n := range []string{"b", "c"} {
		if err := os.RemoveAll(filepath.Join(s.dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	c := s.config("a", s.addresses["a"])
	rev, err := Recover(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if rev < last+recoverySkip {
		t.Fatalf("recovered at revision %d, but the store was at %d", rev, last)
	}
	s.start("a")
	s.voters("a", "a")
	for i := range 50 {
		s.get("a", fmt.Sprintf("/k/%d", i), fmt.Sprint(i))
	}
	w, err := s.at("a").Watch(ctx, "/", last)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Next(ctx); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("watch from before the recovery: %v", err)
	}
	w.Close()
	if got := s.put("a", "/new", "1"); got <= rev {
		t.Fatalf("written at revision %d, recovered at %d", got, rev)
	}
	for _, n := range []string{"b", "c"} {
		there := s.arrive(ctx, n)
		if err := s.at("a").Add(ctx, n); err != nil {
			t.Fatal(err)
		}
		if err := <-there; err != nil {
			t.Fatal(err)
		}
	}
	s.voters("b", "a", "b", "c")
	s.stop("a")
	s.get("c", "/k/49", "49")
	if at := s.put("b", "/new", "2"); at <= rev {
		t.Fatalf("written at revision %d, recovered at %d", at, rev)
	}
}

// A recovery may be interrupted at any point and repeated. A half-recovered member does not
// start.
func TestRecoverAgain(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	s.put("a", "/k", "1")
	s.stop("a", "b", "c")
	c := s.config("a", s.addresses["a"])
	if err := os.Mkdir(filepath.Join(c.Dir, recovered), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if _, err := s.begin(ctx, "a"); err == nil {
		t.Fatal("started during an interrupted recovery")
	}
	if _, err := Recover(ctx, c); err != nil {
		t.Fatal(err)
	}
	// As if it had been interrupted before the new data was moved into place.
	made := filepath.Join(c.Dir, recovered)
	if err := errors.Join(
		os.MkdirAll(filepath.Join(made, "data"), 0o700),
		os.Rename(filepath.Join(c.Dir, "member"), filepath.Join(made, "data", "member")),
		os.Rename(filepath.Join(c.Dir, memoryFile), filepath.Join(made, memoryFile)),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := Recover(ctx, c); err != nil {
		t.Fatal(err)
	}
	s.start("a")
	s.get("a", "/k", "1")
}

// showing is an Identity that presents a certificate and accepts any.
type showing struct{ *identity.Source }

func (s showing) Client(protocols ...string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols, Certificates: []tls.Certificate{s.Current().Certificate}, InsecureSkipVerify: true}
}

func (s showing) Server(...string) *tls.Config { return s.ServerTLS(false) }

// Connections that do not authenticate take up few slots, and members can still connect.
func TestUnauthenticatedPeerConnectionsAreBounded(t *testing.T) {
	s := newSite(t, "a")
	s.start("a")
	a := s.at("a").peers
	// Count slots rather than connections being served: a connection that has lost its slot
	// ends a little later.
	places, ok := a.listener.(*connlimit.Listener)
	if !ok {
		t.Fatalf("the listener is a %T and not a *connlimit.Listener", a.listener)
	}
	var strangers []net.Conn
	for range 2 * peerLimits.Unknown {
		c, err := net.Dial("tcp", s.addresses["a"])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		strangers = append(strangers, c)
		if n := places.Unknown(); n > peerLimits.Unknown {
			t.Fatalf("%d unauthenticated connections at once, want at most %d", n, peerLimits.Unknown)
		}
	}
	// Eventually all are closed, and none was answered.
	for _, c := range strangers {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		for {
			if n := places.Unknown(); n > peerLimits.Unknown {
				t.Fatalf("%d unauthenticated connections at once, want at most %d", n, peerLimits.Unknown)
			}
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("an unauthenticated connection stays open")
			} else if err != nil {
				break
			}
		}
	}
	for range 2 * peerLimits.Unknown { // authenticated connections do not count
		c, err := a.dial(s.addresses["a"], protocolPeer+a.seat())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
}

// Members accept, and connect to, only processes with an apiserver's certificate of the
// cluster's authority.
func TestPeersAreApiservers(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	a := s.at("a").peers
	for name, id := range map[string]*identity.Source{
		"a node":            s.ca.Source(t, "system:node:n1"),
		"another authority": identitytest.NewCA(t).Source(t, "kube-apiserver"),
	} {
		stranger := &peers{cards: a.cards, id: showing{id}, ctx: context.Background()}
		for _, protocol := range []string{protocolCards, protocolPeer + a.seat()} {
			c, err := stranger.dial(s.addresses["a"], protocol)
			if err != nil {
				continue
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s was accepted for protocol %s: %v", name, protocol, err)
			}
			_ = c.Close()
		}
		// A process that answers at a member's address with another certificate is not accepted
		// as the member.
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{id.Current().Certificate}, NextProtos: []string{protocolCards}})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_ = c.(*tls.Conn).Handshake()
				_ = c.Close()
			}
		}()
		if c, err := a.dial(l.Addr().String(), protocolCards); err == nil {
			_ = c.Close()
			t.Errorf("%s was accepted as a member", name)
		}
		_ = l.Close()
	}
	// Nor is one member accepted as another.
	if c, err := a.dial(s.addresses["b"], protocolPeer+s.at("c").peers.seat()); err == nil {
		_ = c.Close()
		t.Error("b was accepted as c")
	}
}

// isolate cuts a member off from the others, or reconnects it if mend is set.
func (s *site) isolate(name string, mend bool) {
	one := s.at(name).etcd.Server
	for n, e := range s.running {
		other := e.etcd.Server
		switch {
		case n == name:
		case mend:
			one.MendPeer(other.MemberID())
			other.MendPeer(one.MemberID())
		default:
			one.CutPeer(other.MemberID())
			other.CutPeer(one.MemberID())
		}
	}
}

// anywhere sends each call to one of the members.
type anywhere struct {
	store.Store
	all []*Embedded
}

func (a anywhere) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	return a.all[rand.IntN(len(a.all))].Get(ctx, key)
}

func (a anywhere) Commit(ctx context.Context, w []store.Write) ([]store.Verdict, error) {
	return a.all[rand.IntN(len(a.all))].Commit(ctx, w)
}

// Calls go to all members while leaders are repeatedly cut off: no member returns outdated
// state, and none loses what it has acknowledged.
func TestHistoryWhileLeadersAreCutOff(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	a := anywhere{Store: s.at("a")}
	for _, e := range s.running {
		a.all = append(a.all, e)
	}
	leading := func() string {
		for n, e := range s.running {
			if e.etcd.Server.Leader() == e.etcd.Server.MemberID() {
				return n
			}
		}
		return ""
	}
	storetest.Linearizable(t, a, func() {
		for cuts := 0; cuts < 4; {
			<-time.After(200 * time.Millisecond)
			who := leading()
			if who == "" {
				continue
			}
			s.isolate(who, false)
			<-time.After(1500 * time.Millisecond)
			s.isolate(who, true)
			cuts++
		}
	})
	for n := range s.running {
		s.put(n, "/after/"+n, "x")
	}
}

// Without a quorum, calls end in bounded time with an error that does not claim too much.
func TestWithoutAQuorumCallsEnd(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	rev := s.put("a", "/k", "1")
	s.stop("b", "c")
	ctx := context.Background()
	pace := pacetest.Start(t)
	began := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := s.at("a").Get(ctx, "/k"); err == nil {
			t.Error("read without a quorum")
		}
		if took := pace.Since(began); took > readTime+2*attemptTime {
			t.Errorf("reading took %v", took)
		}
	})
	wg.Go(func() {
		v, err := s.at("a").Commit(ctx, []store.Write{{Key: "/k", Value: []byte("2"), Expect: rev, Settled: func(b []byte) bool { return string(b) == "2" }}})
		if err != nil || v[0].Err == nil || errors.Is(v[0].Err, store.ErrConflict) {
			t.Errorf("wrote without a quorum: %v %+v", err, v)
		}
		if took := pace.Since(began); took > settleTime+2*forwardTime {
			t.Errorf("writing took %v", took)
		}
	})
	wg.Wait()
}
