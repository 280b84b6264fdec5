package fencing

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/internal/fence"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a machine whose clock the test sets and whose pods have a number of processes.
type rig struct {
	t   *testing.T
	dir string

	mu        sync.Mutex
	now       time.Duration
	processes map[types.UID]int
	woken     map[types.UID]bool
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, dir: t.TempDir(), now: time.Hour, processes: map[types.UID]int{}, woken: map[types.UID]bool{}}
}

func (r *rig) advance(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now += d
}

// fencer returns a Fencer that runs until stop is called.
func (r *rig) fencer(boot string) (f *Fencer, stop func()) {
	r.t.Helper()
	f, err := New(Config{
		Dir: r.dir, Boot: boot,
		Now: func() time.Duration { r.mu.Lock(); defer r.mu.Unlock(); return r.now },
		Kill: func(uid types.UID) (int, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			left := r.processes[uid]
			r.processes[uid] = max(left-1, 0) // one signal ends one process
			return left, nil
		},
		Wake: func(uid types.UID) { r.mu.Lock(); defer r.mu.Unlock(); r.woken[uid] = true },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(stop)
	return f, stop
}

func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		r.mu.Lock()
		ok := cond()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-deadline:
			r.t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

func pod(uid string, fenced bool) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}
	if fenced {
		p.Annotations = map[string]string{fence.Annotation: fence.ByLease}
	}
	return p
}

func renew(t *testing.T, f *Fencer) {
	t.Helper()
	attempt, err := f.Send(2 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	f.Renewed(attempt)
}

func TestStopsWhatHasOptedIn(t *testing.T) {
	r := newRig(t)
	f, _ := r.fencer("boot-1")
	if err := f.Enter(pod("plain", false)); err != nil {
		t.Errorf("a pod that has not opted in: %v", err)
	}
	if err := f.Enter(pod("db", true)); !errors.Is(err, fence.ErrLapsed) {
		t.Errorf("entered before the first renewal: %v", err)
	}
	renew(t, f)
	if err := f.Enter(pod("db", true)); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.processes["db"], r.processes["plain"] = 3, 3
	r.mu.Unlock()
	r.advance(11 * time.Second)
	renew(t, f)
	r.advance(11 * time.Second)
	if err := f.Enter(pod("db", true)); err != nil || f.Stopped("db") {
		t.Errorf("the renewed lease does not hold: %v", err)
	}
	r.advance(time.Second)
	r.eventually("the processes of db are killed", func() bool { return r.processes["db"] == 0 && r.woken["db"] })
	renew(t, f)
	if !f.Stopped("db") || f.Stopped("plain") {
		t.Errorf("stopped: db %v, plain %v", f.Stopped("db"), f.Stopped("plain"))
	}
	if err := f.Enter(pod("db", true)); !errors.Is(err, fence.ErrStopped) {
		t.Errorf("a stopped pod entered: %v", err)
	}
	// The runtime puts a process into the pod that it was asked to start before.
	r.mu.Lock()
	r.processes["db"] = 1
	r.mu.Unlock()
	r.eventually("the late process is killed", func() bool { return r.processes["db"] == 0 })
	f.Leave("db")
	if err := f.Enter(pod("db", true)); err != nil {
		t.Error(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.processes["plain"] != 3 {
		t.Error("a pod that has not opted in was killed")
	}
}

// TestSuccessor starts an agent after another one was killed, within the deadline, after it,
// and after a reboot.
func TestSuccessor(t *testing.T) {
	for name, c := range map[string]struct {
		down time.Duration
		boot string
		goes bool
	}{
		"within the deadline": {11 * time.Second, "boot-1", true},
		"after the deadline":  {12 * time.Second, "boot-1", false},
		"after a reboot":      {time.Second, "boot-2", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			f, stop := r.fencer("boot-1")
			renew(t, f)
			if err := f.Enter(pod("db", true)); err != nil {
				t.Fatal(err)
			}
			if err := f.Enter(pod("gone", true)); err != nil {
				t.Fatal(err)
			}
			f.Leave("gone")
			stop()
			r.mu.Lock()
			r.processes["db"] = 2
			r.mu.Unlock()
			r.advance(c.down)
			next, _ := r.fencer(c.boot)
			if !c.goes {
				r.eventually("the pod is killed", func() bool { return r.processes["db"] == 0 })
				renew(t, next)
				if err := next.Enter(pod("db", true)); !errors.Is(err, fence.ErrStopped) {
					t.Errorf("the pod starts again: %v", err)
				}
				return
			}
			renew(t, next)
			if err := next.Enter(pod("db", true)); err != nil {
				t.Errorf("the pod does not go on: %v", err)
			}
			attempt, err := next.Send(2 * time.Second)
			if err != nil || !slices.Equal(attempt.Promise.Pods, []types.UID{"db"}) {
				t.Errorf("the next promise names %v, error %v; want db", attempt.Promise.Pods, err)
			}
		})
	}
}

// TestDiskThatIsFull checks that no pod starts that a successor would not know, and that
// running pods are stopped all the same.
func TestDiskThatIsFull(t *testing.T) {
	r := newRig(t)
	f, _ := r.fencer("boot-1")
	renew(t, f)
	if err := f.Enter(pod("db", true)); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.processes["db"] = 1
	r.mu.Unlock()
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	if err := f.Enter(pod("other", true)); err == nil {
		t.Error("a pod entered without a record")
	}
	attempt, err := f.Send(2 * time.Second)
	if err != nil || slices.Contains(attempt.Promise.Pods, "other") {
		t.Errorf("the promise names %v, error %v", attempt.Promise.Pods, err)
	}
	r.advance(12 * time.Second)
	r.eventually("db is killed", func() bool { return r.processes["db"] == 0 })
}

// TestShorterPromiseIsRecordedFirst checks the deadline on disk before a renewal with a
// shorter duration is sent.
func TestShorterPromiseIsRecordedFirst(t *testing.T) {
	r := newRig(t)
	f, stop := r.fencer("boot-1")
	attempt, err := f.Send(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	f.Renewed(attempt)
	if err := f.Enter(pod("db", true)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Send(2 * time.Second); err != nil {
		t.Fatal(err)
	}
	stop()
	held, err := load(filepath.Join(r.dir, leaseFile))
	if want := time.Hour + 12*time.Second; err != nil || held.Deadline != want {
		t.Errorf("recorded deadline %v, error %v; want %v", held.Deadline, err, want)
	}
}

func TestRecordThatCannotBeRead(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(filepath.Join(r.dir, podsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: r.dir, Kill: func(types.UID) (int, error) { return 0, nil }}); err == nil {
		t.Error("an unreadable record was accepted")
	}
}
