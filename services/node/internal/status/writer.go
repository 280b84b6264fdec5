package status

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
)

// API is the part of the API client that the writer uses.
type API interface {
	Commit(ctx context.Context, writes ...client.Write) ([]client.WriteResult, error)
	GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
}

// maxBatch is the maximum number of writes in one call.
const maxBatch = 200

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// Writer writes statuses to the API. It writes only the newest status of each pod and sends
// at most one batch at a time, so changes that arrive meanwhile are coalesced. A failed
// write is retried until it succeeds or the pod is gone.
type Writer struct {
	api API
	// cached returns the pod from the node's watch cache.
	cached func(namespace, name string) (*corev1.Pod, bool)
	wake   chan struct{}

	mu      sync.Mutex
	entries map[types.UID]*entry
}

// entry is the pending write of one pod. Its fields are guarded by the writer's lock.
type entry struct {
	pod *corev1.Pod
	// status is the status to write. version increases with each Set; written is the
	// version that the API has.
	status           *corev1.PodStatus
	version, written uint64
	// remove requests deletion of the object once the status is written.
	remove      bool
	traceparent string
	// known is the object as of the last write or read, while it is newer than the cache.
	// stale is true after a conflict, until the object has been read again.
	known     *corev1.Pod
	stale     bool
	notBefore time.Time
	delay     time.Duration
	// waiters are closed once the API has the newest status, or the pod is gone.
	waiters []chan struct{}
}

// NewWriter returns a writer. It writes nothing until Run is called.
func NewWriter(api API, cached func(namespace, name string) (*corev1.Pod, bool)) *Writer {
	return &Writer{api: api, cached: cached, wake: make(chan struct{}, 1), entries: map[types.UID]*entry{}}
}

// Set requests a pod's status to be written. A later Set replaces it.
func (w *Writer) Set(p *corev1.Pod, s *corev1.PodStatus, traceparent string) {
	w.mu.Lock()
	e := w.entries[p.UID]
	if e == nil {
		e = &entry{}
		w.entries[p.UID] = e
	}
	e.pod, e.traceparent = p, traceparent
	e.status = s
	// Compare even an unchanged status with the object again, because another client may
	// have changed the object.
	e.version++
	w.mu.Unlock()
	w.poke()
}

// Remove requests deletion of the pod's object after its last status has been written.
func (w *Writer) Remove(p *corev1.Pod, traceparent string) {
	w.mu.Lock()
	e := w.entries[p.UID]
	if e == nil {
		e = &entry{pod: p}
		w.entries[p.UID] = e
	}
	e.remove, e.traceparent = true, traceparent
	w.mu.Unlock()
	w.poke()
}

// Forget drops the pending write of a pod that is gone.
func (w *Writer) Forget(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.entries[uid]; e != nil {
		w.drop(uid, e)
	}
}

// drop removes an entry. The lock is held.
func (w *Writer) drop(uid types.UID, e *entry) {
	e.release()
	delete(w.entries, uid)
}

// release wakes those who wait for the entry's status to be written.
func (e *entry) release() {
	for _, c := range e.waiters {
		close(c)
	}
	e.waiters = nil
}

// Written returns a channel that is closed once the API has the status of the last Set, or
// the pod is gone.
func (w *Writer) Written(uid types.UID) <-chan struct{} {
	done := make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.entries[uid]; e != nil && e.version != e.written {
		e.waiters = append(e.waiters, done)
	} else {
		close(done)
	}
	return done
}

func (w *Writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// job is one write of a batch and the version of the entry that it writes.
type job struct {
	uid     types.UID
	version uint64
	remove  bool
	write   client.Write
}

// Run writes statuses until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		jobs, next := w.collect(ctx)
		if len(jobs) > 0 {
			w.send(ctx, jobs)
			continue
		}
		if next > 0 {
			timer.Reset(next)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// collect returns the next batch, and how long to wait for another one.
func (w *Writer) collect(ctx context.Context) (jobs []job, next time.Duration) {
	now := time.Now()
	w.mu.Lock()
	var stale []*entry
	for uid, e := range w.entries {
		if e.version == e.written && !e.remove {
			continue
		}
		if wait := e.notBefore.Sub(now); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		if len(jobs) == maxBatch {
			next = time.Millisecond
			break
		}
		if e.stale {
			stale = append(stale, e)
			continue
		}
		if j, ok := w.job(uid, e); ok {
			jobs = append(jobs, j)
		}
	}
	w.mu.Unlock()
	for _, e := range stale {
		w.refresh(ctx, e)
		next = time.Millisecond
	}
	return jobs, next
}

// job returns the next write for an entry, if one is needed.
func (w *Writer) job(uid types.UID, e *entry) (job, bool) {
	base := e.known
	if cached, ok := w.cached(e.pod.Namespace, e.pod.Name); ok && cached.UID == uid && (base == nil || newer(cached, base)) {
		base, e.known = cached, nil
	}
	if base == nil {
		base = e.pod
	}
	if e.version != e.written {
		merged := merge(base, e.status)
		if !Equal(&base.Status, merged) {
			obj := &corev1.Pod{ObjectMeta: *base.ObjectMeta.DeepCopy(), Spec: base.Spec, Status: *merged}
			return job{uid: uid, version: e.version, write: client.StatusWrite(obj).WithTraceparent(e.traceparent)}, true
		}
		e.written = e.version
		e.release()
	}
	if e.remove {
		write := client.DeleteWrite[*corev1.Pod](e.pod.Namespace, e.pod.Name, client.Grace(0), client.UID(uid))
		return job{uid: uid, remove: true, write: write.WithTraceparent(e.traceparent)}, true
	}
	return job{}, false
}

// merge returns want with the fields that other clients write taken from base.
func merge(base *corev1.Pod, want *corev1.PodStatus) *corev1.PodStatus {
	out := want.DeepCopy()
	kept := out.Conditions[:0]
	for _, c := range out.Conditions {
		if Owned(c) {
			kept = append(kept, c)
		}
	}
	for _, c := range base.Status.Conditions {
		if !owned[c.Type] && condition(&corev1.PodStatus{Conditions: kept}, c.Type) == nil {
			kept = append(kept, c)
		}
	}
	out.Conditions = kept
	if base.Status.StartTime != nil {
		out.StartTime = base.Status.StartTime
	}
	if base.Status.Phase == corev1.PodFailed || base.Status.Phase == corev1.PodSucceeded {
		out.Phase = base.Status.Phase
	}
	out.QOSClass = base.Status.QOSClass
	if out.QOSClass == "" {
		out.QOSClass = want.QOSClass
	}
	out.ResourceClaimStatuses, out.ExtendedResourceClaimStatus = base.Status.ResourceClaimStatuses, base.Status.ExtendedResourceClaimStatus
	return out
}

func (w *Writer) send(ctx context.Context, jobs []job) {
	writes := make([]client.Write, len(jobs))
	for i := range jobs {
		writes[i] = jobs[i].write
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	results, err := w.api.Commit(ctx, writes...)
	if err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "pod statuses were not written", "pods", len(jobs)-len(results), "error", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, j := range jobs {
		e := w.entries[j.uid]
		if e == nil {
			continue
		}
		if i >= len(results) {
			e.retry()
			continue
		}
		w.settle(ctx, e, j, results[i])
	}
}

// settle records the result of one write.
func (w *Writer) settle(ctx context.Context, e *entry, j job, r client.WriteResult) {
	switch {
	case r.Err == nil && j.remove:
		w.drop(j.uid, e)
	case r.Err == nil:
		e.written, e.delay = j.version, 0
		if e.version == e.written {
			e.release()
		}
		if p, ok := r.Object.(*corev1.Pod); ok && p != nil {
			e.known = p
		}
	case apierrors.IsNotFound(r.Err):
		w.drop(j.uid, e)
	case apierrors.IsConflict(r.Err):
		e.stale = true
	default:
		slog.WarnContext(ctx, "pod status was not written", "pod", e.pod.Namespace+"/"+e.pod.Name, "remove", j.remove, "error", r.Err)
		e.retry()
	}
}

func (e *entry) retry() {
	e.delay = min(max(2*e.delay, retryFirst), retryMost)
	e.notBefore = time.Now().Add(e.delay)
}

// refresh reads a pod whose write conflicted with a newer version.
func (w *Writer) refresh(ctx context.Context, e *entry) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	p, err := w.api.GetPod(ctx, e.pod.Namespace, e.pod.Name)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case apierrors.IsNotFound(err), err == nil && p.UID != e.pod.UID:
		w.drop(e.pod.UID, e)
	case err != nil:
		e.retry()
	default:
		e.known, e.stale = p, false
	}
}

// newer reports whether a is at least as new as b, by resourceVersion.
func newer(a, b *corev1.Pod) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX == nil && errY == nil && x >= y
}
