// Package fencing keeps a node's promise to stop opted-in pods when the node's Lease
// expires. The protocol, and why it is safe, is in package fence of services/internal.
//
// The agent calls Enter before it starts anything of a pod, Stopped to learn that a pod has
// ended here, and Leave when nothing of the pod is left. The heartbeat calls Send before
// each renewal, and Renewed after each that succeeded.
//
// Run kills. It must not depend on anything that can hang together with the rest of the
// node: it takes one lock that is never held across a system call that may block, uses
// neither the container runtime nor the API, and writes to disk only after the kill. The
// set of pods is on disk, synced, before Enter returns. The deadline is written at each
// renewal without a sync: it only matters to a successor on the same boot, and an older one
// is an earlier one.
package fencing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/internal/fence"
)

const (
	// watch is the longest sleep while a deadline is ahead. Timers do not advance while
	// the machine is suspended, but the deadline does.
	watch = 250 * time.Millisecond
	// again is the time between two looks at the processes of stopped pods.
	again = 50 * time.Millisecond
)

// Config configures a Fencer.
type Config struct {
	// Dir holds what a successor has to know. It must survive restarts of the agent.
	Dir string
	// Kill kills all processes of a pod and returns how many it found. It is called until
	// it returns 0, and from time to time after that.
	Kill func(types.UID) (left int, err error)
	// Wake is called for each pod that becomes stopped. It must not block.
	Wake func(types.UID)
	// Now returns the time since the machine booted, and Boot identifies that boot; nil is
	// the machine's own.
	Now  func() time.Duration
	Boot string
}

// Fencer is the node's side of the protocol.
type Fencer struct {
	cfg  Config
	poke chan struct{}

	mu   sync.Mutex
	node *fence.Node

	disk sync.Mutex // serializes writes; it is locked before mu
}

// New reads the record of a predecessor. It fails if that cannot be read: the pods of a
// predecessor would run on unwatched.
func New(cfg Config) (*Fencer, error) {
	if cfg.Now == nil {
		cfg.Now = sinceBoot
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("identify the boot: %w", err)
		}
		cfg.Boot = strings.TrimSpace(string(boot))
	}
	if cfg.Wake == nil {
		cfg.Wake = func(types.UID) {}
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	f := &Fencer{cfg: cfg, poke: make(chan struct{}, 1)}
	pods, err := load(filepath.Join(cfg.Dir, podsFile))
	if err != nil {
		return nil, err
	}
	held, err := load(filepath.Join(cfg.Dir, leaseFile))
	if err != nil || held.Boot != pods.Boot {
		held.Deadline = 0 // of no use: the pods count as overdue
	}
	f.node = fence.Restore(fence.Record{Boot: pods.Boot, Deadline: held.Deadline, Pods: pods.Pods}, cfg.Boot)
	return f, nil
}

// The files in Config.Dir hold a fence.Record each, one of them without pods, the other
// without a deadline.
const (
	podsFile  = "pods.json"
	leaseFile = "lease.json"
)

func load(name string) (r fence.Record, err error) {
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return fence.Record{}, fmt.Errorf("read record of fenced pods: %w; stop the pods of this node and remove %s", err, name)
	}
	return r, nil
}

func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("fencing: " + err.Error()) // Linux has had this clock since 2.6.39
	}
	return time.Duration(t.Nano())
}

// Run stops pods when their time has come, until ctx ends.
func (f *Fencer) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := f.sweep(ctx)
		if next > 0 {
			timer.Reset(next)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.poke:
		case <-timer.C:
		}
	}
}

// sweep stops pods that are overdue and kills what is left of stopped ones. It returns when
// to look again; 0 means only after a change.
func (f *Fencer) sweep(ctx context.Context) (next time.Duration) {
	now := f.cfg.Now()
	f.mu.Lock()
	stop := f.node.Check(now)
	var stopped []types.UID
	for uid, is := range f.node.Record("").Pods {
		if is {
			stopped = append(stopped, uid)
		}
	}
	if f.node.Len() > 0 {
		next = watch
		if d := f.node.Deadline(); d > now {
			next = min(next, d-now)
		}
	}
	f.mu.Unlock()
	slices.Sort(stopped)
	for _, uid := range stopped {
		if left, err := f.cfg.Kill(uid); left > 0 || err != nil {
			next = again
			if err != nil {
				slog.ErrorContext(ctx, "fenced pod was not stopped", "pod_uid", uid, "error", err)
			}
		}
	}
	if len(stop) > 0 {
		slog.WarnContext(ctx, "the node's lease expired: pods were stopped", "pod_uids", stop)
		f.announce(stop)
		next = again
		if err := f.savePods(); err != nil {
			slog.ErrorContext(ctx, "record of fenced pods was not written", "error", err)
		}
	}
	return next
}

func (f *Fencer) announce(stopped []types.UID) {
	for _, uid := range stopped {
		f.cfg.Wake(uid)
	}
}

func (f *Fencer) wake() {
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// Enter admits an opted-in pod, and does nothing for others. It must succeed before any
// process of the pod starts. It fails with fence.ErrLapsed while the Lease is not held, and
// with fence.ErrStopped for good.
func (f *Fencer) Enter(p *corev1.Pod) error {
	f.mu.Lock()
	known, _ := f.node.Known(p.UID)
	if !known && p.Annotations[fence.Annotation] != fence.ByLease {
		f.mu.Unlock()
		return nil
	}
	err := f.node.Enter(p.UID, f.cfg.Now())
	f.mu.Unlock()
	if err != nil || known {
		return err
	}
	f.wake()
	if err := f.savePods(); err != nil {
		f.Leave(p.UID)
		return fmt.Errorf("record fenced pod: %w", err)
	}
	if f.saveLease() != nil {
		return nil // without it, a successor stops the pod at once
	}
	// The deadline may have passed while the disk was busy.
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.node.Enter(p.UID, f.cfg.Now())
}

// Stopped reports whether a pod was stopped because the Lease expired.
func (f *Fencer) Stopped(uid types.UID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, stopped := f.node.Known(uid)
	return stopped
}

// Leave forgets a pod of which nothing is left.
func (f *Fencer) Leave(uid types.UID) {
	f.mu.Lock()
	known, _ := f.node.Known(uid)
	f.node.Leave(uid)
	f.mu.Unlock()
	if !known {
		return
	}
	if err := f.savePods(); err != nil {
		// The entry goes with the next write. Until then a successor watches a pod too many.
		slog.WarnContext(context.Background(), "record of fenced pods was not written", "error", err)
	}
}

// Send begins a renewal of the Lease with this heartbeat interval. It must be called before
// the renewal is sent.
func (f *Fencer) Send(heartbeat time.Duration) (fence.Renewal, error) {
	f.mu.Lock()
	before := f.node.Deadline()
	r := f.node.Send(f.cfg.Now(), fence.After(heartbeat))
	shorter := f.node.Deadline() < before && f.node.Len() > 0
	f.mu.Unlock()
	if shorter {
		// The control plane may count with this deadline, so a successor has to know it.
		f.wake()
		if err := f.saveLease(); err != nil {
			return r, fmt.Errorf("record the lease's deadline: %w", err)
		}
	}
	return r, nil
}

// Renewed records that a renewal was stored.
func (f *Fencer) Renewed(r fence.Renewal) {
	f.mu.Lock()
	stop := f.node.Renewed(r, f.cfg.Now())
	pods := f.node.Len()
	f.mu.Unlock()
	if len(stop) > 0 {
		f.announce(stop)
		f.wake()
		if f.savePods() != nil {
			return // the old deadline stays, by which a successor stops them
		}
	}
	if pods > 0 {
		if err := f.saveLease(); err != nil {
			slog.WarnContext(context.Background(), "deadline of the node's lease was not written", "error", err)
		}
	}
}

func (f *Fencer) savePods() error {
	return f.save(podsFile, true, func(r *fence.Record) { r.Deadline = 0 })
}

func (f *Fencer) saveLease() error {
	return f.save(leaseFile, false, func(r *fence.Record) { r.Pods = nil })
}

// save replaces a file by the present state.
func (f *Fencer) save(name string, sync bool, part func(*fence.Record)) error {
	f.disk.Lock()
	defer f.disk.Unlock()
	f.mu.Lock()
	record := f.node.Record(f.cfg.Boot)
	part(&record)
	data, err := json.Marshal(record)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	name = filepath.Join(f.cfg.Dir, name)
	file, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil && sync {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil || !sync {
		return err
	}
	dir, err := os.Open(f.cfg.Dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
