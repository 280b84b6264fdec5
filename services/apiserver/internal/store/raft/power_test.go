package raft

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"os"

	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// unsynced returns the number of pages of a file that a power loss would lose.
func unsynced(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const cachestat = 451 // Linux 6.5
	area := struct{ off, length uint64 }{}
	var stat struct{ cache, dirty, writeback, evicted, recentlyEvicted uint64 }
	if _, _, no := unix.Syscall6(cachestat, f.Fd(), uintptr(unsafe.Pointer(&area)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0); no != 0 {
		t.Fatalf("cachestat: %v (it needs Linux 6.5)", no)
	}
	return stat.dirty + stat.writeback
}

func TestWhatIsAcknowledgedIsSynced(t *testing.T) {
	for _, sync := range []bool{true, false} {
		dir := t.TempDir()
		s := single(t, Config{Dir: dir, bolt: bbolt.Options{NoSync: !sync}})
		found := 0
		for range 20 {
			put(t, s, "/a", "x")
			n := unsynced(t, filepath.Join(dir, "log.db"))
			if n > 0 {
				found++
			}
			if sync && n > 0 {
				t.Fatalf("%d pages are not synced", n)
			}
		}
		// Without syncs, the check must find unsynced pages at least once, or it detects
		// nothing. (It need not find them every time, because the kernel may write pages at any
		// time.)
		if !sync && found == 0 {
			t.Fatal("without syncs, everything is on disk: the test proves nothing")
		}
	}
}

// volatile is a disk that can be held: writes then block, as if they were not synced, and a
// power cut can be simulated.
type volatile struct {
	durable
	mu   sync.Mutex
	held chan struct{} // nil: not held
	cut  bool
	// logs is set if only logs are held, not votes and terms.
	logs bool
	// waiting is the number of blocked writes.
	waiting int
}

func (d *volatile) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = make(chan struct{})
}

func (d *volatile) release(cut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = d.cut || cut
	if d.held != nil {
		close(d.held)
		d.held = nil
	}
}

func (d *volatile) waits() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting
}

var errPower = errors.New("simulated power cut")

func (d *volatile) reach() error {
	d.mu.Lock()
	held := d.held
	d.waiting++
	d.mu.Unlock()
	if held != nil {
		<-held
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting--
	if d.cut {
		return errPower
	}
	return nil
}

func (d *volatile) StoreLog(l *hraft.Log) error { return d.StoreLogs([]*hraft.Log{l}) }

func (d *volatile) StoreLogs(l []*hraft.Log) error {
	if err := d.reach(); err != nil {
		return err
	}
	return d.durable.StoreLogs(l)
}

func (d *volatile) Set(key, value []byte) error {
	if d.logs {
		return d.durable.Set(key, value)
	}
	if err := d.reach(); err != nil {
		return err
	}
	return d.durable.Set(key, value)
}

// unanswered checks that no answer arrives for a while.
func unanswered[T any](t *testing.T, what string, answers <-chan T) {
	t.Helper()
	select {
	case v := <-answers:
		t.Fatalf("%s was answered before it was on disk: %+v", what, v)
	case <-time.After(300 * time.Millisecond):
	}
}

func commitLater(s *Store, key string) <-chan store.Verdict {
	answers := make(chan store.Verdict, 1)
	go func() {
		v, err := s.Commit(context.Background(), []store.Write{{Key: key, Value: []byte("x")}})
		if err != nil {
			v = []store.Verdict{{Err: err}}
		}
		answers <- v[0]
	}()
	return answers
}

func TestAWriteIsAcknowledgedOnlyOnceItIsOnDisk(t *testing.T) {
	dir := t.TempDir()
	disk := &volatile{}
	s := single(t, Config{Dir: dir, settleTime: time.Second, wrapLog: func(l *logStore) durable { disk.durable = l; return disk }})
	put(t, s, "/before", "x")
	disk.hold()
	answers := commitLater(s, "/slow")
	eventually(t, "the write reaches the disk", func() bool { return disk.waits() > 0 })
	unanswered(t, "the write", answers)
	disk.release(false)
	if v := <-answers; v.Err != nil {
		t.Fatal(v.Err)
	}
	disk.hold()
	answers = commitLater(s, "/lost")
	eventually(t, "the write reaches the disk", func() bool { return disk.waits() > 0 })
	disk.release(true)
	if v := <-answers; v.Err == nil {
		t.Fatal("a write that the power cut lost was acknowledged")
	}
	s.Close()
	s = single(t, Config{Dir: dir})
	page, err := s.List(context.Background(), "/", store.ListOptions{})
	if err != nil || len(page.Entries) != 2 || page.Entries[0].Key != "/before" || page.Entries[1].Key != "/slow" {
		t.Fatalf("entries after the power cut: %+v, %v", page.Entries, err)
	}
}

// volatileCluster starts a cluster on disks that can be held.
func volatileCluster(t *testing.T, change func(*Config, *volatile)) (*cluster, map[string]*volatile) {
	disks := map[string]*volatile{}
	var mu sync.Mutex
	c := newCluster(t, 3, func(cfg *Config) {
		d := &volatile{}
		change(cfg, d)
		cfg.wrapLog = func(l *logStore) durable {
			d.durable = l
			return d
		}
		mu.Lock()
		disks[cfg.Name] = d
		mu.Unlock()
	})
	t.Cleanup(func() { // otherwise members would wait for the disk when they stop
		for _, d := range disks {
			d.release(false)
		}
	})
	return c, disks
}

func TestAWriteNeedsAMajorityOfDisks(t *testing.T) {
	// The write has no Settled: if another member led in the meantime, its outcome would be
	// unknown.
	c, disks := volatileCluster(t, func(cfg *Config, _ *volatile) { cfg.Timing.Election = 10 * time.Second })
	leader, followers := c.leader()
	c.put(leader, "/before", "x")
	first, second := disks[followers[0].cfg.Name], disks[followers[1].cfg.Name]
	first.hold()
	second.hold()
	answers := commitLater(leader, "/slow")
	eventually(t, "the write reaches both disks", func() bool { return first.waits() > 0 && second.waits() > 0 })
	unanswered(t, "the write", answers)
	first.release(false)
	if v := <-answers; v.Err != nil {
		t.Fatal(v.Err)
	}
	second.release(false)
}

// A new leader has what was acknowledged before it was elected, but may not know yet that it
// was committed. Until it does, it must not answer reads.
func TestNewLeaderAnswersReadsOnlyOnceItKnowsTheCommitIndex(t *testing.T) {
	c, disks := volatileCluster(t, func(cfg *Config, d *volatile) {
		d.logs = true
		calm(cfg)                     // the first entry of another leader would reveal the commit
		cfg.Timing.Commit = time.Hour // followers learn of a commit only with the next entry
	})
	old, followers := c.leader()
	eventually(t, "all members vote", func() bool { return len(old.voters()) == 3 })
	c.put(old, "/a", "x")
	for _, f := range followers {
		// A disk that is held during a write could not vote.
		eventually(t, "both followers have the entry", func() bool {
			last, err := f.disk.LastIndex()
			return err == nil && last == old.raft.LastIndex() && f.raft.LastIndex() == last
		})
		f.machine.mu.RLock()
		known := f.machine.get("/a") != nil
		f.machine.mu.RUnlock()
		if known {
			t.Fatal("a follower has seen the commit: the test proves nothing")
		}
		disks[f.cfg.Name].hold()
	}
	c.isolate(old.cfg.Name)
	var next *Store
	eventually(t, "another member leads", func() bool {
		for _, f := range followers {
			if f.raft.State() == hraft.Leader {
				next = f
			}
		}
		return next != nil
	})
	type answer struct {
		value string
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		e, _, err := next.Get(context.Background(), "/a")
		answers <- answer{string(e.Value), err}
	}()
	unanswered(t, "the read", answers)
	for _, f := range followers {
		disks[f.cfg.Name].release(false)
	}
	if a := <-answers; a.err != nil || a.value != "x" {
		t.Fatalf("%+v", a)
	}
}

func TestVoteIsGrantedOnlyOnceItIsOnDisk(t *testing.T) {
	dir := t.TempDir()
	disk := &volatile{}
	service := NewService(func(context.Context) error { return nil })
	s := single(t, Config{
		Dir: dir, Service: service, wrapLog: func(l *logStore) durable { disk.durable = l; return disk },
		Timing: Timing{Election: time.Minute}, // otherwise it would eventually vote for itself in a later term
	})
	term := s.raft.CurrentTerm() + 7
	disk.hold()
	answers := make(chan *raftv1.RequestVoteResponse, 1)
	go func() {
		r, err := service.RequestVote(context.Background(), &raftv1.RequestVoteRequest{
			Header: &raftv1.Header{Target: string(s.id), ProtocolVersion: 3, Address: []byte("x/1")},
			Term:   term, LastLogIndex: 1 << 30, LastLogTerm: term - 1, LeadershipTransfer: true,
		})
		if err != nil {
			r = nil
		}
		answers <- r
	}()
	eventually(t, "the vote reaches the disk", func() bool { return disk.waits() > 0 })
	unanswered(t, "the vote", answers)
	disk.release(false)
	if r := <-answers; !r.GetGranted() {
		t.Fatalf("vote: %v", r)
	}
	if voted, err := s.disk.GetUint64([]byte(keyVoteTerm)); err != nil || voted != term {
		t.Fatalf("term of the vote on disk: %d, %v", voted, err)
	}
}

// The library saves the term of a vote first, then its candidate.
func TestVoteIsSavedAtomically(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, bbolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	vote := func(term uint64, candidate string) {
		t.Helper()
		if err := l.SetUint64([]byte(keyVoteTerm), term); err != nil {
			t.Fatal(err)
		}
		if candidate == "" {
			return // the process is killed here
		}
		if err := l.Set([]byte(keyVoteCandidate), []byte(candidate)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(term uint64, candidate string) {
		t.Helper()
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
		if l, err = openLog(dir, bbolt.Options{}); err != nil {
			t.Fatal(err)
		}
		gotTerm, err := l.GetUint64([]byte(keyVoteTerm))
		if err != nil || gotTerm != term {
			t.Fatalf("term %d, %v; want %d", gotTerm, err, term)
		}
		got, err := l.Get([]byte(keyVoteCandidate))
		if err != nil || string(got) != candidate {
			t.Fatalf("candidate %s, %v; want %s", got, err, candidate)
		}
	}
	if _, err := l.GetUint64([]byte(keyVoteTerm)); err == nil || err.Error() != "not found" {
		t.Fatalf("vote term of an empty log: %v", err)
	}
	vote(4, "x/1")
	check(4, "x/1")
	vote(5, "")
	check(4, "x/1")
	vote(6, "y/1")
	check(6, "y/1")
	_ = l.close()
}
