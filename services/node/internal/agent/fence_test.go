package agent

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/internal/fence"
	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/fencing"
)

// fenced starts the rig's agent with a fencer, whose clock the returned value moves.
func (r *rig) fenced() (f *fencing.Fencer, clock *atomic.Int64) {
	r.t.Helper()
	r.stop()
	cgroups, err := cgroup.Detect(r.runtime.CgroupRoot)
	if err != nil {
		r.t.Fatal(err)
	}
	clock = &atomic.Int64{}
	clock.Store(int64(time.Hour))
	f, err = fencing.New(fencing.Config{
		Dir: filepath.Join(r.dir, "fencing"), Kill: cgroups.StopPod, Wake: func(uid types.UID) { go r.agent.wake(uid) },
		Now: func() time.Duration { return time.Duration(clock.Load()) }, Boot: "boot",
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.fence = f
	r.start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	r.t.Cleanup(func() { cancel(); <-done })
	return f, clock
}

// TestCutOffNodeStopsFencedPods lets the Lease of a node expire. The pod that opted in
// ignores SIGTERM.
func TestCutOffNodeStopsFencedPods(t *testing.T) {
	r := newRig(t)
	f, clock := r.fenced()
	renew := func() {
		attempt, err := f.Send(2 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		f.Renewed(attempt)
	}
	const script = "trap '' TERM; while true; do sleep 0.05; done"
	db := simple("db-0", script)
	db.Annotations = map[string]string{fence.Annotation: fence.ByLease}
	db = r.create(db)
	plain := r.create(simple("plain", script))
	r.awaitReady(plain)
	if s := r.state(db); len(s.Sandboxes) > 0 {
		t.Fatal("a fenced pod was started before the lease was renewed")
	}
	renew()
	r.awaitReady(db)
	clock.Add(int64(13 * time.Second))
	got := r.await(db, "stopped", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if got.Status.Reason != reasonFenced {
		t.Errorf("reason %q, want %s", got.Status.Reason, reasonFenced)
	}
	r.until("no process is left", time.Minute, func() bool { return len(r.state(db).Running()) == 0 })
	if !f.Stopped(db.UID) || len(r.state(plain).Running()) != 1 {
		t.Errorf("stopped: %v, containers of the other pod: %d", f.Stopped(db.UID), len(r.state(plain).Running()))
	}
	renew()
	r.delete(db)
	r.awaitGone(db)
	r.until("the pod is forgotten", time.Minute, func() bool { return !f.Stopped(db.UID) })
}
