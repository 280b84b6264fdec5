package raft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/storetest"
)

// holds makes sure that a store has these entries.
func holds(t testing.TB, s store.Store, want map[string]string) {
	t.Helper()
	page, err := s.List(context.Background(), "/", store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range page.Entries {
		got[e.Key] = string(e.Value)
	}
	for key, value := range want {
		if got[key] != value {
			t.Fatalf("%s is %q, acknowledged was %q (%d of %d entries)", key, got[key], value, len(got), len(want))
		}
	}
}

func TestAnEmptiedDiskIsTakenInAsAnother(t *testing.T) {
	c := newCluster(t, 3, nil)
	want := map[string]string{}
	write := func(s store.Store, n int) {
		for range n {
			key := fmt.Sprint("/", len(want))
			want[key] = key
			c.put(s, key, key)
		}
	}
	write(c.members["b"], 50)
	// The founder too: it must not found another cluster.
	for _, name := range []string{"b", "a"} {
		before := c.members[name].id
		c.stop(name)
		c.empty(name)
		leader, _ := c.leader()
		write(leader, 50)
		c.start(name)
		if c.members[name].id == before {
			t.Fatalf("%s has the same id on another disk", before)
		}
		eventually(t, name+" has its vote again", func() bool {
			leader, _ := c.leader()
			return slices.Equal(sorted(leader.voters()), sorted(c.ids()))
		})
		write(c.members[name], 10)
		holds(t, c.members[name], want)
	}
	// What they hold counts: they alone keep everything.
	c.stop("c")
	write(c.members["b"], 10)
	holds(t, c.members["a"], want)
}

func (c *cluster) ids() (out []string) {
	for _, name := range c.names {
		out = append(out, string(c.members[name].id))
	}
	return out
}

func sorted[S ~string](in []S) (out []string) {
	for _, s := range in {
		out = append(out, string(s))
	}
	slices.Sort(out)
	return out
}

// Two of three have a write. One of them is emptied, the other is down: the third
// must not be elected with the vote of the emptied one.
func TestAnEmptiedDiskElectsNobodyWhoLacksAWrite(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, followers := c.leader()
	stale, emptied := followers[0].cfg.Name, followers[1].cfg.Name
	c.stop(stale)
	want := map[string]string{}
	for i := range 20 {
		key := fmt.Sprint("/", i)
		want[key] = key
		c.put(leader, key, key)
	}
	keeps := leader.cfg.Name
	old := string(c.members[emptied].id)
	c.stop(emptied)
	c.stop(keeps)
	c.empty(emptied)
	opened := make(chan error, 2)
	for _, name := range []string{stale, emptied} {
		cfg, err := c.serve(name)
		if err != nil {
			t.Fatal(err)
		}
		go func() { opened <- c.join(name, cfg) }()
	}
	// The stale one asks for votes, in vain.
	var from *Store
	eventually(t, "both run", func() bool {
		from = c.members[stale].service.store.Load()
		return from != nil && c.members[emptied].service.store.Load() != nil
	})
	deadline := time.After(3 * time.Second)
	for waiting := true; waiting; {
		select {
		case err := <-opened:
			t.Fatalf("without the member that keeps the writes, a store opened: %v", err)
		case <-deadline:
			waiting = false
		case <-time.After(10 * time.Millisecond):
			if l := from.Status().Leader; l != "" {
				t.Fatalf("%s was elected", l)
			}
		}
	}
	p, err := from.transport.member(emptied)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.RequestVote(context.Background(), &raftv1.RequestVoteRequest{
		Header: &raftv1.Header{Target: old, ProtocolVersion: 3, Id: []byte(from.id), Address: []byte(from.id)},
		Term:   1 << 20, LastLogIndex: 1 << 20, LastLogTerm: 1 << 20,
	}); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("a vote under the old id: %v", err)
	}
	c.start(keeps)
	for range 2 {
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range c.names {
		holds(t, c.members[name], want)
	}
}

// A member may know a membership that the leader does not: one that was never
// committed, or that was changed since.
func TestAMemberThatWasLetGoIsTakenInAgain(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, followers := c.leader()
	want := map[string]string{"/a": "x"}
	c.put(leader, "/a", "x")
	gone := followers[0]
	if err := leader.raft.RemoveServer(gone.id, 0, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has its vote again", func() bool {
		leader, _ := c.leader()
		return slices.Equal(sorted(leader.voters()), sorted(c.ids()))
	})
	holds(t, gone, want)
}

func TestAMemberThatIsLateFoundsNothing(t *testing.T) {
	c := newCluster(t, 3, nil)
	// A single member grows to three, the first of which is new.
	grown := &cluster{TB: t, ca: c.ca, names: []string{"b"}, members: map[string]*clusterMember{}}
	for name, m := range c.members {
		c.stop(name)
		c.empty(name)
		grown.members[name] = &clusterMember{dir: m.dir, addr: m.addr}
	}
	grown.start("b")
	want := map[string]string{"/kept": "x"}
	grown.put(grown.members["b"], "/kept", "x")
	grown.stop("b")
	grown.names = []string{"a", "b", "c"}
	grown.start("a", "b", "c")
	for _, name := range grown.names {
		holds(t, grown.members[name], want)
	}
	eventually(t, "all three have a vote", func() bool {
		leader, _ := grown.leader()
		return len(leader.voters()) == 3
	})
}

// running is a client that turns to another member where one ends or finds no
// leader, after which nothing was written.
type running struct {
	*cluster
	mu   sync.RWMutex // held for writing while a member is exchanged
	next atomic.Int64
}

func (r *running) on(f func(*Store) error) {
	for {
		r.mu.RLock()
		s := r.members[r.names[r.next.Add(1)%int64(len(r.names))]].Store
		r.mu.RUnlock()
		if err := f(s); !errors.Is(err, store.ErrClosed) && !errors.Is(err, errNoLeader) {
			return
		}
	}
}

func (r *running) Get(ctx context.Context, key string) (e store.Entry, rev store.Revision, err error) {
	r.on(func(s *Store) error { e, rev, err = s.Get(ctx, key); return err })
	return e, rev, err
}

func (r *running) List(ctx context.Context, prefix string, o store.ListOptions) (p store.Page, err error) {
	r.on(func(s *Store) error { p, err = s.List(ctx, prefix, o); return err })
	return p, err
}

func (r *running) Commit(ctx context.Context, w []store.Write) (v []store.Verdict, err error) {
	r.on(func(s *Store) error {
		if v, err = s.Commit(ctx, w); err == nil {
			return v[0].Err
		}
		return err
	})
	return v, err
}

func (r *running) Watch(ctx context.Context, prefix string, after store.Revision) (w store.Watch, err error) {
	r.on(func(s *Store) error { w, err = s.Watch(ctx, prefix, after); return err })
	return w, err
}

func (r *running) Revision(ctx context.Context) (rev store.Revision, err error) {
	r.on(func(s *Store) error { rev, err = s.Revision(ctx); return err })
	return rev, err
}

func (r *running) Compact(ctx context.Context, rev store.Revision) (err error) {
	r.on(func(s *Store) error { err = s.Compact(ctx, rev); return err })
	return err
}

// TestHistoriesAreLinearizableWhileLeadersChange cuts leaders off, ends them and
// lets them come back, while clients read and write through all members.
func TestHistoriesAreLinearizableWhileLeadersChange(t *testing.T) {
	r := &running{cluster: newCluster(t, 3, func(cfg *Config) { cfg.settleTime = 2 * time.Second })}
	r.leader()
	stop := make(chan struct{})
	changes := 0
	var chaos sync.WaitGroup
	chaos.Go(func() {
		for ; ; changes++ {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
			leader, _ := r.leader()
			name := leader.cfg.Name
			r.mu.Lock()
			if changes%2 == 0 {
				r.isolate(name)
			}
			r.stop(name)
			r.start(name)
			r.mu.Unlock()
		}
	})
	storetest.Linearizable(t, r, 120)
	close(stop)
	chaos.Wait()
	if changes == 0 {
		t.Fatal("no leader changed")
	}
	t.Logf("%d changes", changes)
}

// TestLeadersChangeUnderLoad cuts leaders off and lets them come back, while
// writers write through all members and watches follow on all of them.
func TestLeadersChangeUnderLoad(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.settleTime = time.Second })
	c.leader()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	var mu sync.RWMutex // held for writing while a member is exchanged
	member := func(i int) *Store {
		mu.RLock()
		defer mu.RUnlock()
		return c.members[c.names[i%3]].Store
	}
	start, err := member(0).Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var acks sync.Mutex
	acked := map[store.Revision]string{}
	unknown := map[string]bool{}
	var stopped atomic.Bool
	var writers sync.WaitGroup
	for g := range 6 {
		writers.Go(func() {
			for i := 0; !stopped.Load(); i++ {
				value := fmt.Sprintf("%d.%d", g, i)
				v, err := member(g+i).Commit(ctx, []store.Write{{
					Key: fmt.Sprint("/", g), Value: []byte(value), Expect: store.Any,
					Settled: func(found []byte) bool { return string(found) == value },
				}})
				if err == nil {
					err = v[0].Err
				}
				acks.Lock()
				switch {
				case err == nil:
					acked[v[0].Revision] = value
				case errors.Is(err, store.ErrUnknownOutcome):
					unknown[value] = true
				case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists):
					t.Errorf("write %s: %v", value, err)
				}
				acks.Unlock()
			}
		})
	}
	var last atomic.Int64 // what watches must reach in the end
	seen := make([]map[store.Revision]string, 3)
	var watchers sync.WaitGroup
	for i := range seen {
		seen[i] = map[store.Revision]string{}
		watchers.Go(func() {
			at := start
			for turn := i; last.Load() == 0 || int64(at) < last.Load(); turn++ {
				w, err := member(turn).Watch(ctx, "/", at)
				if err != nil {
					if errors.Is(err, store.ErrClosed) && ctx.Err() == nil {
						continue
					}
					t.Error(err)
					return
				}
				for last.Load() == 0 || int64(at) < last.Load() {
					next, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
					b, err := w.Next(next)
					cancel()
					if ctx.Err() != nil || errors.Is(err, store.ErrCompacted) {
						t.Errorf("watch at %d: %v", at, err)
						w.Close()
						return
					}
					if err != nil {
						break
					}
					for _, e := range b.Events {
						if e.Entry.ModRevision != at+1 {
							t.Errorf("watch %d: event at %d after %d", i, e.Entry.ModRevision, at)
						}
						at = e.Entry.ModRevision
						seen[i][at] = string(e.Entry.Value)
					}
				}
				w.Close()
			}
		})
	}
	for round := range 5 {
		leader, _ := c.leader()
		name := leader.cfg.Name
		before := leader.Status().Term
		if round%2 == 0 {
			c.isolate(name)
		}
		if round%2 == 0 {
			eventually(t, "another one leads", func() bool {
				for _, other := range c.names {
					if s := c.members[other]; other != name && s.Status().Term > before && s.Status().Leader == string(s.id) {
						return true
					}
				}
				return false
			})
		}
		mu.Lock()
		c.stop(name)
		c.start(name)
		mu.Unlock()
		acks.Lock()
		have := len(acked)
		acks.Unlock()
		eventually(t, "acknowledgements go on", func() bool {
			acks.Lock()
			defer acks.Unlock()
			return len(acked) > have+200
		})
	}
	stopped.Store(true)
	writers.Wait()
	final, err := member(0).Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	last.Store(int64(final))
	watchers.Wait()
	t.Logf("%d acknowledged, %d unknown, %d revisions", len(acked), len(unknown), final-start)
	for i := range seen {
		for rev, value := range acked {
			if seen[i][rev] != value {
				t.Errorf("watch %d saw %q at %d, acknowledged was %q", i, seen[i][rev], rev, value)
			}
		}
		known := map[string]bool{}
		for _, value := range acked {
			known[value] = true
		}
		times := map[string]int{}
		for rev, value := range seen[i] {
			if times[value]++; times[value] > 1 {
				t.Errorf("watch %d: %q was written twice, once at %d", i, value, rev)
			}
			if !known[value] && !unknown[value] {
				t.Errorf("watch %d: %q at %d was reported as failed", i, value, rev)
			}
		}
	}
}

func TestALeaderThatIsCutOffServesNoStaleRead(t *testing.T) {
	c := newCluster(t, 3, nil)
	old, followers := c.leader()
	c.put(old, "/a", "1")
	c.isolate(old.cfg.Name)
	var wg sync.WaitGroup
	overwritten := make(chan struct{})
	defer wg.Wait()
	for range 4 {
		wg.Go(func() {
			<-overwritten
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if e, _, err := old.Get(ctx, "/a"); err == nil {
				t.Errorf("read %q", e.Value)
			}
			if rev, err := old.Revision(ctx); err == nil {
				t.Errorf("read revision %d", rev)
			}
		})
	}
	func() {
		defer close(overwritten)
		c.put(followers[0], "/a", "2")
	}()
	wg.Wait()
	if e, _, err := followers[1].Get(context.Background(), "/a"); err != nil || string(e.Value) != "2" {
		t.Fatalf("%+v %v", e, err)
	}
	if err := followers[1].Health(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says so", func() bool { return errors.Is(old.Health(), errNoLeader) })
	old.Close()
	if err := old.Health(); !errors.Is(err, store.ErrClosed) {
		t.Fatal(err)
	}
}

// filtered is a connection that loses some requests.
type filtered struct {
	*grpc.ClientConn
	lose *atomic.Bool
	keep string
}

func (f *filtered) loses(method string) error {
	if f.lose.Load() && !strings.HasSuffix(method, f.keep) {
		return status.Error(codes.Unavailable, "lost")
	}
	return nil
}

func (f *filtered) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := f.loses(method); err != nil {
		return err
	}
	return f.ClientConn.Invoke(ctx, method, args, reply, opts...)
}

func (f *filtered) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := f.loses(method); err != nil {
		return nil, err
	}
	s, err := f.ClientConn.NewStream(ctx, desc, method, opts...)
	return &filteredStream{s, f, method}, err
}

type filteredStream struct {
	grpc.ClientStream
	by     *filtered
	method string
}

func (s *filteredStream) SendMsg(m any) error {
	if err := s.by.loses(s.method); err != nil {
		return err
	}
	return s.ClientStream.SendMsg(m)
}

// A leader that was asleep believes in its leadership until it asks.
func TestWhoWasElectedSinceIsAskedFor(t *testing.T) {
	lose := map[string]*atomic.Bool{"a": {}, "b": {}, "c": {}}
	c := newCluster(t, 3, func(cfg *Config) {
		dial, name := cfg.Dial, cfg.Name
		cfg.Dial = func(member string) (grpc.ClientConnInterface, error) {
			conn, err := dial(member)
			if err != nil {
				return nil, err
			}
			return &filtered{conn.(*grpc.ClientConn), lose[name], "/ConfirmTerm"}, nil
		}
	})
	old, _ := c.leader()
	if _, err := old.Revision(context.Background()); err != nil {
		t.Fatal(err)
	}
	term := old.raft.CurrentTerm()
	if err := old.confirm(term); err != nil {
		t.Fatal(err)
	}
	name := old.cfg.Name
	lose[name].Store(true)
	c.members[name].down()
	eventually(t, "another one leads", func() bool {
		for _, other := range c.names {
			if s := c.members[other].Store; s != old && s.Status().Leader == string(s.id) {
				return true
			}
		}
		return false
	})
	eventually(t, "both others have moved on", func() bool {
		err := old.confirm(term)
		return err != nil && strings.Count(err.Error(), "is in term") == 2
	})
	if now := old.raft.CurrentTerm(); now != term {
		t.Fatalf("it has heard of term %d: the test proves nothing", now)
	}
}

func TestALateMemberGetsASnapshotAndLargeEntries(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, followers := c.leader()
	late := followers[0].cfg.Name
	c.stop(late)
	want := map[string]string{}
	large := strings.Repeat("x", 2<<20)
	for i := range 400 {
		key := fmt.Sprint("/", i)
		want[key] = key
		if i%100 == 99 {
			want[key] = large + key
		}
		c.put(leader, key, want[key])
	}
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := leader.disk.FirstIndex(); err != nil || first < 100 {
		t.Fatalf("the log still begins at %d, %v", first, err)
	}
	// These reach it as entries, more than one message takes.
	for i := range 5 {
		key := fmt.Sprint("/large/", i)
		want[key] = large + key
		c.put(leader, key, want[key])
	}
	c.start(late)
	holds(t, c.members[late], want)
	w, err := c.members[late].Watch(context.Background(), "/", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Next(context.Background()); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("a watch from before the snapshot: %v", err)
	}
}

func TestEveryRequestIsRefusedThatIsMeantForAnother(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) {})
	m := c.members["a"]
	id := c.ca.Source(t, "kube-apiserver")
	conn, err := grpc.NewClient(m.addr, grpc.WithTransportCredentials(id.ClientCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := raftv1.NewRaftServiceClient(conn)
	ctx := context.Background()
	another := &raftv1.Header{Target: "a/another-disk", ProtocolVersion: 3, Id: []byte("b/1"), Address: []byte("b/1")}
	requests := map[string]func() error{
		"AppendEntries": func() error {
			_, err := client.AppendEntries(ctx, &raftv1.AppendEntriesRequest{Header: another, Term: 99})
			return err
		},
		"AppendEntriesPipeline": func() error {
			s, err := client.AppendEntriesPipeline(ctx)
			if err == nil {
				_ = s.Send(&raftv1.AppendEntriesPipelineRequest{Request: &raftv1.AppendEntriesRequest{Header: another, Term: 99}})
				_, err = s.Recv()
			}
			return err
		},
		"RequestVote": func() error {
			_, err := client.RequestVote(ctx, &raftv1.RequestVoteRequest{Header: another, Term: 99})
			return err
		},
		"RequestPreVote": func() error {
			_, err := client.RequestPreVote(ctx, &raftv1.RequestPreVoteRequest{Header: another, Term: 99})
			return err
		},
		"TimeoutNow": func() error {
			_, err := client.TimeoutNow(ctx, &raftv1.TimeoutNowRequest{Header: another})
			return err
		},
		"InstallSnapshot": func() error {
			s, err := client.InstallSnapshot(ctx)
			if err == nil {
				_ = s.Send(&raftv1.InstallSnapshotRequest{Header: another, Term: 99})
				_, err = s.CloseAndRecv()
			}
			return err
		},
		"ConfirmTerm": func() error {
			_, err := client.ConfirmTerm(ctx, &raftv1.ConfirmTermRequest{Target: another.Target})
			return err
		},
		"ReadIndex": func() error {
			_, err := client.ReadIndex(ctx, &raftv1.ReadIndexRequest{Target: another.Target})
			return err
		},
		"Propose": func() error {
			_, err := client.Propose(ctx, &raftv1.ProposeRequest{Target: another.Target, Operations: []*raftv1.Operation{{Kind: &raftv1.Operation_Tick{Tick: &raftv1.Tick{}}}}})
			return err
		},
	}
	if n := len(raftv1.RaftService_ServiceDesc.Methods) + len(raftv1.RaftService_ServiceDesc.Streams); len(requests) != n-1 {
		t.Fatalf("%d of %d methods are tried, and Identify has no target", len(requests), n)
	}
	for name, f := range requests {
		if err := f(); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v", name, err)
		}
	}
	term := m.raft.CurrentTerm()
	if term >= 99 {
		t.Fatalf("the term became %d", term)
	}
	// And whoever is no member is refused whatever he asks.
	m.service.allow = func(context.Context) error { return status.Error(codes.PermissionDenied, "no") }
	another.Target = string(m.id)
	requests["Identify"] = func() error {
		_, err := client.Identify(ctx, &raftv1.IdentifyRequest{})
		return err
	}
	for name, f := range requests {
		if err := f(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain, err := grpc.NewClient(m.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if _, err := raftv1.NewRaftServiceClient(plain).Identify(ctx, &raftv1.IdentifyRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("without TLS: %v", err)
	}
}

// TestWhatGathersIsBounded lets requests gather while one is on its way.
func TestWhatGathersIsBounded(t *testing.T) {
	release := make(chan struct{})
	var mu sync.Mutex
	var submitted [][]*raftv1.Operation
	p := newProposals(1, func(ops []*raftv1.Operation) func() (result, error) {
		mu.Lock()
		submitted = append(submitted, ops)
		mu.Unlock()
		return func() (result, error) {
			<-release
			res := result{index: uint64(len(ops))}
			for _, op := range ops {
				res.outcomes = append(res.outcomes, outcome{rev: store.Revision(op.GetWrite().Sequence)})
			}
			return res, nil
		}
	})
	const requests = 40
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			var ops []*raftv1.Operation
			for j := range 1 + i%5*100 {
				ops = append(ops, write("/a", strings.Repeat("x", 700), 0, func(w *raftv1.Write) { w.Sequence = uint64(1000*i + j) }))
			}
			res, err := p.do(context.Background(), ops)
			if err != nil || len(res.outcomes) != len(ops) {
				t.Errorf("request %d: %d outcomes, %v", i, len(res.outcomes), err)
				return
			}
			for j, o := range res.outcomes {
				if o.rev != store.Revision(1000*i+j) {
					t.Errorf("request %d got the outcome of %d", i, o.rev)
				}
			}
		})
	}
	eventually(t, "all have gathered", func() bool {
		p.mu.Lock()
		n := len(p.queue)
		p.mu.Unlock()
		mu.Lock()
		defer mu.Unlock()
		return len(submitted) > 0 && n == requests-together(submitted[0])
	})
	close(release)
	wg.Wait()
	p.close()
	for i, ops := range submitted {
		size := 0
		for _, op := range ops {
			size += proto.Size(op)
		}
		if len(ops) > entryOperations || size > entryBytes {
			t.Errorf("entry %d has %d operations, %d bytes", i, len(ops), size)
		}
	}
	if len(submitted) < 5 || len(submitted) > 20 {
		t.Errorf("%d requests made %d entries", requests, len(submitted))
	}
}

// together is how many requests an entry has.
func together(ops []*raftv1.Operation) int {
	requests := map[uint64]bool{}
	for _, op := range ops {
		requests[op.GetWrite().Sequence/1000] = true
	}
	return len(requests)
}

func TestAFullQueueSaysSo(t *testing.T) {
	s := single(t, Config{})
	s.proposals.mu.Lock()
	s.proposals.bytes = queueBytes
	s.proposals.queue = make([]*proposal, queueRequests)
	s.proposals.mu.Unlock()
	v, err := s.Commit(context.Background(), []store.Write{{Key: "/a", Value: []byte("x")}})
	s.proposals.mu.Lock()
	s.proposals.bytes, s.proposals.queue = 0, nil
	s.proposals.mu.Unlock()
	if err != nil || !errors.Is(v[0].Err, store.ErrTooMany) {
		t.Fatalf("%+v %v", v, err)
	}
	put(t, s, "/a", fmt.Sprint(rand.Uint64()))
}

func TestLargeValuesAndLargeBatchesThroughAFollower(t *testing.T) {
	c := newCluster(t, 3, nil)
	_, followers := c.leader()
	s := followers[0]
	ctx := context.Background()
	var writes []store.Write
	create := func(key string, size int) store.Write {
		value := make([]byte, size)
		copy(value, key)
		return store.Write{Key: key, Value: value, Settled: func(found []byte) bool { return bytes.Equal(found, value) }}
	}
	for i := range 5000 {
		writes = append(writes, create(fmt.Sprint("/small/", i), 1000))
	}
	for i := range 3 {
		writes = append(writes, create(fmt.Sprint("/large/", i), maxValue))
	}
	v, err := s.Commit(ctx, writes)
	if err != nil {
		t.Fatal(err)
	}
	for i := range v {
		if v[i].Err != nil {
			t.Fatalf("write %d: %v", i, v[i].Err)
		}
	}
	// All of them again: each is found, those with little room are not told.
	if v, err = s.Commit(ctx, writes); err != nil {
		t.Fatal(err)
	}
	for i := range v {
		if !errors.Is(v[i].Err, store.ErrExists) {
			t.Fatalf("write %d again: %v", i, v[i].Err)
		}
	}
	if cur := v[len(v)-1].Current; cur == nil || len(cur.Value) != maxValue {
		t.Fatal("what is in the way is not told")
	}
	v, err = s.Commit(ctx, []store.Write{create("/too-large", maxValue+1), create("/fits", maxValue)})
	if err != nil || v[0].Err == nil || errors.Is(v[0].Err, store.ErrUnknownOutcome) || v[1].Err != nil {
		t.Fatalf("%v %v", v[0].Err, v[1].Err)
	}
	for _, other := range followers {
		page, err := other.List(ctx, "/", store.ListOptions{})
		if err != nil || page.Count != 5004 {
			t.Fatalf("%d entries, %v", page.Count, err)
		}
	}
}
