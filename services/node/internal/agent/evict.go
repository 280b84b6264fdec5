package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/pod"
)

// Evict ends a pod of this node for a reason of the node's: pressure, shutdown, or the loss
// of the node's lease. The reason, message and conditions are written to the pod's status
// before its containers are stopped, unless the API does not answer within recordPatience;
// the phase becomes Failed once they have ended. An agent that is restarted in between
// continues with the recorded reason and grace period.
//
// Evict returns at once. The channel is closed when the pod's containers have ended and its
// network, volumes and cgroup have been released. If the pod is ending already, its reason
// stays the first one, and the shorter grace period applies.
//
// It returns an error if the node has no such pod.
func (a *Agent) Evict(uid types.UID, e pod.Ending) (<-chan struct{}, error) {
	a.mu.Lock()
	w := a.workers[uid]
	a.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("evict pod %s: the node has no such pod", uid)
	}
	w.evict(e)
	return w.over, nil
}

// Active returns the pods that hold resources of the node: those that have been given to
// it, and have not ended and been cleaned up. The pods must not be changed.
func (a *Agent) Active() []*corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*corev1.Pod, 0, len(a.workers))
	for _, w := range a.workers {
		select {
		case <-w.over:
			continue
		default:
		}
		w.mu.Lock()
		if w.pod != nil {
			out = append(out, w.pod)
		}
		w.mu.Unlock()
	}
	return out
}

// recordPatience bounds how long the containers of a pod that the node ends are kept
// running until the API has the reason. Without the bound, a node that is cut off would
// never stop them.
const recordPatience = time.Second

// evict requests the pod's end.
func (w *worker) evict(e pod.Ending) {
	w.mu.Lock()
	if w.evicted == nil {
		w.evicted = &e
	} else {
		first := *w.evicted
		first.Grace = shorter(first.Grace, e.Grace)
		w.evicted = &first
	}
	if w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

// takeEviction adopts what Evict asked for.
func (w *worker) takeEviction() {
	w.mu.Lock()
	e := w.evicted
	w.mu.Unlock()
	switch {
	case e == nil:
	case w.ended == nil:
		w.ended = e
	case w.ended != e:
		first := *w.ended
		first.Grace = shorter(first.Grace, e.Grace)
		w.ended = &first
	}
}

func shorter(a, b *time.Duration) *time.Duration {
	if a == nil || b != nil && *b < *a {
		return b
	}
	return a
}

// graceFile is the file in a pod's directory that holds the grace period of its ending. It goes
// with the pod's volumes. It is not synced: no container outlives the loss of the machine.
const graceFile = "grace"

// recordGrace records the grace period with which the node ends the pod for the next agent.
func (w *worker) recordGrace() error {
	if w.ended == nil || w.ended.Grace == nil {
		return nil
	}
	dir := w.a.volumes.PodDir(w.uid)
	if err := makeDir(dir, 0o750); err != nil {
		return err
	}
	name := filepath.Join(dir, graceFile)
	if err := os.WriteFile(name+".new", []byte(w.ended.Grace.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// recordedGrace returns the grace period that an earlier agent recorded, or nil.
func (w *worker) recordedGrace() *time.Duration {
	text, err := os.ReadFile(filepath.Join(w.a.volumes.PodDir(w.uid), graceFile))
	if err != nil {
		return nil
	}
	grace, err := time.ParseDuration(string(text))
	if err != nil || grace < 0 {
		return nil
	}
	return &grace
}

// recorded waits until the API has the reason why the node ends the pod.
func (w *worker) recorded(ctx context.Context) {
	uid := w.uid
	w.mu.Lock()
	p := w.pod
	w.mu.Unlock()
	if p != nil && pod.IsStatic(p) {
		m := w.a.mirrorOf(p)
		if m == nil {
			return
		}
		uid = m.UID
	}
	timer := time.NewTimer(recordPatience)
	defer timer.Stop()
	select {
	case <-w.a.writer.Written(uid):
	case <-timer.C:
	case <-ctx.Done():
	}
}

// release records that the pod holds nothing of the node any more.
func (w *worker) release() {
	if !w.isOver {
		w.isOver = true
		close(w.over)
	}
}
