package etcd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/loopbacktest"
	"keelson.dev/services/internal/pacetest"
)

// childEnv makes this test binary run a member under load, which prints what happens line by
// line; see child.
const childEnv = "KEELSON_TEST_ETCD_MEMBER"

type childConfig struct {
	Name, Dir, Identity string
	Members             map[string]string
	ListenClient        string
}

// Lines that a child prints. Each starts with the time in nanoseconds since 1970.
const (
	saysReady   = "ready"
	saysLeader  = "leader" // 1 or 0
	saysWritten = "written"
	saysFailed  = "failed"
	saysEvent   = "event" // revision and value
	saysError   = "error"
)

const childWriters = 4

// child runs a member of the test below: writers, each with its own keys, and one watch, until
// it is killed or its input ends.
func child(config string) int {
	var c childConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		_, _ = fmt.Fprintln(os.Stdout, err)
		return 1
	}
	var mu sync.Mutex
	say := func(what string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(os.Stdout, append([]any{time.Now().UnixNano(), what}, args...)...)
	}
	id, err := identity.Load(c.Identity)
	if err != nil {
		say(saysError, err)
		return 1
	}
	peer, err := peertls.Load(id, "")
	if err != nil {
		say(saysError, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	cfg := EmbeddedConfig{
		Name: c.Name, Dir: c.Dir, Log: quiet(),
		Peers: &PeerConfig{Listen: c.Members[c.Name], Identity: peer, Members: c.Members},
	}
	if c.ListenClient != "" {
		cfg.ListenClient, cfg.ClientNames = c.ListenClient, []string{"kube-apiserver"}
		cfg.ClientTLS = TLSFiles{
			Cert: filepath.Join(c.Identity, identity.CertFile), Key: filepath.Join(c.Identity, identity.KeyFile), CA: filepath.Join(c.Identity, identity.CAFile),
		}
	}
	e, err := Start(ctx, cfg)
	if err != nil {
		say(saysError, err)
		return 1
	}
	defer e.Close()
	say(saysReady)
	var wg sync.WaitGroup
	wg.Go(func() { // report whether this member leads
		was := false
		for tick := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			if is := e.etcd.Server.Leader() == e.etcd.Server.MemberID(); is != was {
				was = is
				say(saysLeader, map[bool]int{true: 1}[is])
			}
		}
	})
	wg.Go(func() { // report the watch's events
		w, err := e.Watch(ctx, "/load/", 1)
		for err == nil {
			var b store.Batch
			if b, err = w.Next(ctx); err != nil {
				break
			}
			for _, ev := range b.Events {
				say(saysEvent, int64(ev.Entry.ModRevision), string(ev.Entry.Value))
			}
		}
		if ctx.Err() == nil {
			say(saysError, err)
		}
	})
	run := strconv.FormatInt(time.Now().UnixNano(), 36)
	for i := range childWriters {
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			for n := 0; ctx.Err() == nil; n++ {
				<-tick.C
				value := fmt.Sprintf("%s-%s-%d-%d", c.Name, run, i, n)
				v, err := e.Commit(ctx, []store.Write{{
					Key: fmt.Sprintf("/load/%s/%d/%d", c.Name, i, n%4), Value: []byte(value), Expect: store.Any,
					Settled: func(found []byte) bool { return string(found) == value },
				}})
				if err == nil {
					err = v[0].Err
				}
				if err == nil {
					say(saysWritten, int64(v[0].Revision), value)
				} else if ctx.Err() == nil {
					say(saysFailed, value, err)
				}
			}
		})
	}
	wg.Wait()
	return 0
}

// family is the children of a test.
type family struct {
	testing.TB
	dir      string
	identity string
	members  map[string]string
	clients  map[string]string
	mu       sync.Mutex
	running  map[string]*exec.Cmd
	leads    string
	written  map[int64]string // by revision, as acknowledged
	when     []int64          // times of acknowledgements
	last     map[string]int64 // by child, the time of its last acknowledgement
	ready    map[string]int64
	seen     map[string]map[int64]string // by run of a child
	failed   []string
	wg       sync.WaitGroup
	pace     *pacetest.Clock
}

func newFamily(t testing.TB, names ...string) *family {
	f := &family{
		TB: t, pace: pacetest.Start(t), dir: t.TempDir(), identity: t.TempDir(), members: map[string]string{}, clients: map[string]string{}, running: map[string]*exec.Cmd{},
		written: map[int64]string{}, last: map[string]int64{}, ready: map[string]int64{}, seen: map[string]map[int64]string{},
	}
	identitytest.NewCA(t).Write(t, f.identity, "kube-apiserver")
	for _, n := range names {
		f.members[n] = loopbacktest.Address(t)
		f.clients[n] = loopbacktest.Address(t)
	}
	t.Cleanup(func() {
		f.mu.Lock()
		for _, c := range f.running {
			_ = c.Process.Kill()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

func (f *family) start(name string) {
	f.Helper()
	config, err := json.Marshal(childConfig{Name: name, Dir: filepath.Join(f.dir, name), Identity: f.identity, Members: f.members, ListenClient: f.clients[name]})
	if err != nil {
		f.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	if _, err = cmd.StdinPipe(); err != nil {
		f.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.mu.Lock()
	delete(f.ready, name)
	f.running[name] = cmd
	f.mu.Unlock()
	run := fmt.Sprintf("%s-%d", name, cmd.Process.Pid)
	f.wg.Go(func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			f.heard(name, run, lines.Text())
		}
		_ = cmd.Wait()
	})
}

func (f *family) heard(name, run, line string) {
	at, rest, _ := strings.Cut(line, " ")
	what, rest, _ := strings.Cut(rest, " ")
	when, err := strconv.ParseInt(at, 10, 64)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.failed = append(f.failed, name+": "+line)
		return
	}
	revAndValue := func() (int64, string) {
		rev, value, _ := strings.Cut(rest, " ")
		n, _ := strconv.ParseInt(rev, 10, 64)
		return n, value
	}
	switch what {
	case saysReady:
		f.ready[name] = when
	case saysLeader:
		if rest == "1" {
			f.leads = name
		} else if f.leads == name {
			f.leads = ""
		}
	case saysWritten:
		rev, value := revAndValue()
		if before, ok := f.written[rev]; ok {
			f.failed = append(f.failed, fmt.Sprintf("%s and %s were both acknowledged at revision %d", before, value, rev))
		}
		f.written[rev] = value
		f.when = append(f.when, when)
		f.last[name] = when
	case saysEvent:
		rev, value := revAndValue()
		if f.seen[run] == nil {
			f.seen[run] = map[int64]string{}
		}
		if _, twice := f.seen[run][rev]; twice {
			f.failed = append(f.failed, fmt.Sprintf("the watch of %s saw revision %d twice", run, rev))
		}
		f.seen[run][rev] = value
	default:
		f.failed = append(f.failed, name+": "+line)
	}
}

// until waits for a condition for a bounded time.
func (f *family) until(what string, cond func() bool) {
	f.Helper()
	deadline := time.After(60 * time.Second)
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		f.mu.Lock()
		ok := cond()
		failed := slices.Clone(f.failed)
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			f.Fatalf("timed out waiting until %s; %v", what, failed)
		}
	}
}

// gap returns the longest time without an acknowledged write between two times.
func (f *family) gap(from, to int64) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	when := slices.Clone(f.when)
	slices.Sort(when)
	last, longest := from, time.Duration(0)
	for _, w := range append(when, to) {
		if w > from && w <= to {
			longest = max(longest, f.pace.Given(time.Unix(0, last), time.Unix(0, w)))
			last = w
		}
	}
	return longest
}

// history compares what was acknowledged with what a client of the store reads at the end, and
// with what each watch saw.
func (f *family) history(final map[int64]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, line := range f.failed {
		f.Error(line)
	}
	for rev, value := range f.written {
		if final[rev] != value {
			f.Errorf("revision %d: %q was acknowledged, but %q is stored", rev, value, final[rev])
		}
	}
	for run, seen := range f.seen {
		var last int64
		for rev := range seen {
			last = max(last, rev)
		}
		for rev, value := range final {
			if rev <= last && seen[rev] != value {
				f.Errorf("the watch of %s has a gap at revision %d", run, rev)
			}
		}
	}
}

// kills returns how many leaders to kill. KEELSON_TEST_KILLS overrides the default.
func kills() int {
	if n, err := strconv.Atoi(os.Getenv("KEELSON_TEST_KILLS")); err == nil {
		return n
	}
	return 4
}

// TestLeaderKills repeatedly kills the leader, under load on all members, and measures how long
// no member can write. No acknowledged write may be lost, no watch may have a gap, and each
// write's outcome must become known. A client of the members keeps working throughout.
func TestLeaderKills(t *testing.T) { leaderFaults(t, kills(), syscall.SIGKILL) }

// TestLeaderPauses stops the leader's process instead, and resumes it when there is another
// leader: it must not return outdated state.
func TestLeaderPauses(t *testing.T) { leaderFaults(t, max(1, kills()/2), syscall.SIGSTOP) }

func leaderFaults(t *testing.T, n int, fault syscall.Signal) {
	f := newFamily(t, "a", "b", "c")
	for n := range f.members {
		f.start(n)
	}
	f.until("all members write", f.writing)
	id, err := identity.Load(f.identity)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Second)
	defer cancel()
	client, err := Dial(ctx, RemoteConfig{Endpoints: slices.Collect(maps.Values(f.clients)), TLS: id.ClientTLS("localhost"), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	outside := newOutsider(ctx, f, client)

	var gaps []time.Duration
	for range n {
		var leader string
		wrote := outside.count()
		f.until("the client writes too", func() bool { return outside.writes > wrote })
		var cmd *exec.Cmd
		f.until("a leader is known", func() bool {
			// Reset it at once, because a member that is elected in between reports it only
			// once.
			leader, cmd, f.leads = f.leads, f.running[f.leads], ""
			return leader != ""
		})
		began := time.Now().UnixNano()
		if err := cmd.Process.Signal(fault); err != nil {
			t.Fatal(err)
		}
		f.until("the other members write again", func() bool {
			if fault == syscall.SIGSTOP { // a SIGCONT to the process group of this test would resume it
				_ = cmd.Process.Signal(fault)
			}
			for n := range f.members {
				if n != leader && f.last[n] < began+int64(50*time.Millisecond) {
					return false
				}
			}
			return f.leads != ""
		})
		f.until("the other members keep writing", func() bool {
			return len(f.when) > 0 && f.when[len(f.when)-1] > began+int64(500*time.Millisecond)
		})
		gaps = append(gaps, f.gap(began, time.Now().UnixNano()))
		if fault == syscall.SIGKILL {
			f.start(leader)
			f.until("the killed member writes again", f.writing)
			continue
		}
		goesOn := time.Now().UnixNano()
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		f.until("the paused member writes again", func() bool { return f.last[leader] > goesOn })
	}
	slices.Sort(gaps)
	worst, median := gaps[len(gaps)-1], gaps[len(gaps)/2]
	t.Logf("%d leaders hit by %v: longest time without a write: median %v, worst %v, all %v", len(gaps), fault, median, worst, gaps)
	if worst > 3*time.Second {
		t.Errorf("no member could write for %v", worst)
	}
	if median > 2*time.Second {
		t.Errorf("no member could write for %v in the median", median)
	}
	outside.end()
	f.lost(ctx, client)
	if outside.longest > settleTime {
		t.Errorf("a client of the members waited for %v", outside.longest)
	}
	t.Logf("a client of the members: %d writes, the longest took %v", outside.writes, outside.longest)
}

// writing reports whether all members have written since they started. The caller holds f.mu.
func (f *family) writing() bool {
	for n := range f.members {
		if f.last[n] <= f.ready[n] || f.ready[n] == 0 {
			return false
		}
	}
	return f.leads != ""
}

// All members are killed at once, under load, and start again at other addresses.
func TestAllAreKilledAndStartElsewhere(t *testing.T) {
	f := newFamily(t, "a", "b", "c")
	for n := range f.members {
		f.start(n)
	}
	for range 3 {
		f.until("all members write", f.writing)
		f.mu.Lock()
		running := maps.Clone(f.running)
		f.leads = ""
		clear(f.ready)
		f.mu.Unlock()
		for _, cmd := range running {
			_ = cmd.Process.Kill()
		}
		f.wg.Wait()
		for n := range f.members {
			f.members[n], f.clients[n] = loopbacktest.Address(t), loopbacktest.Address(t)
		}
		began := time.Now()
		for n := range f.members {
			f.start(n)
		}
		f.until("all members write", f.writing)
		if took := f.pace.Since(began); took > 5*time.Second {
			t.Errorf("all members write again after %v", took)
		} else {
			t.Logf("all members write again after %v", took)
		}
	}
	id, err := identity.Load(f.identity)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	client, err := Dial(ctx, RemoteConfig{Endpoints: slices.Collect(maps.Values(f.clients)), TLS: id.ClientTLS("localhost"), Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	f.lost(ctx, client)
}

// lost checks that all acknowledged writes are stored, and that the children's watches have no
// gaps.
func (f *family) lost(ctx context.Context, client *Remote) {
	t := f.TB
	// Read everything that was written, with a watch from the start.
	final := map[int64]string{}
	at, err := client.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.Watch(ctx, "/load/", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f.mu.Lock()
	upTo := int64(0)
	for rev := range f.written {
		if rev <= int64(at) {
			upTo = max(upTo, rev)
		}
	}
	f.mu.Unlock()
	var last int64
	for last < upTo {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			last = int64(e.Entry.ModRevision)
			final[last] = string(e.Entry.Value)
		}
	}
	f.mu.Lock()
	for rev := range f.written {
		if rev > upTo {
			delete(f.written, rev) // written after the end
		}
	}
	f.mu.Unlock()
	f.history(final)
}

// outsider writes through a client of the members, and reads what it wrote.
type outsider struct {
	f       *family
	stop    context.CancelFunc
	wg      sync.WaitGroup
	writes  int // guarded by f.mu
	longest time.Duration
}

func (o *outsider) count() int {
	o.f.mu.Lock()
	defer o.f.mu.Unlock()
	return o.writes
}

func newOutsider(ctx context.Context, f *family, client *Remote) *outsider {
	ctx, stop := context.WithCancel(ctx)
	o := &outsider{f: f, stop: stop}
	o.wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			<-tick.C
			value := fmt.Sprintf("outside-%d", n)
			began := time.Now()
			v, err := client.Commit(ctx, []store.Write{{Key: "/load/outside", Value: []byte(value), Expect: store.Any, Settled: func(b []byte) bool { return string(b) == value }}})
			if err == nil {
				err = v[0].Err
			}
			if ctx.Err() != nil {
				return
			}
			took := f.pace.Since(began)
			if took > time.Second {
				f.Logf("a client of the members waited for %v to write %s", took, value)
			}
			o.longest = max(o.longest, took)
			if err != nil {
				f.Errorf("a client of the members, after %v: %v", took, err)
				continue
			}
			f.mu.Lock()
			o.writes++
			f.written[int64(v[0].Revision)] = value
			f.mu.Unlock()
			began = time.Now()
			e, _, err := client.Get(ctx, "/load/outside")
			took = f.pace.Since(began)
			if took > time.Second {
				f.Logf("a client of the members waited for %v to read", took)
			}
			o.longest = max(o.longest, took)
			if ctx.Err() == nil && (err != nil || string(e.Value) != value) {
				f.Errorf("a client of the members wrote %s and read %q: %v", value, e.Value, err)
			}
		}
	})
	return o
}

func (o *outsider) end() {
	o.stop()
	o.wg.Wait()
}
