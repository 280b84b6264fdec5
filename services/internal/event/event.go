// Package event records Kubernetes Events: what a service did to an object or failed to
// do, as `kubectl describe` and `kubectl events` show it.
//
// Recording must never block its caller or return an error: the queue is bounded, and events
// that do not fit are dropped and counted. An event that is repeated within ten minutes
// increases the count of the first. An event belongs to the epoch of the leader that
// recorded it, and is refused once that epoch has ended.
package event

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/telemetry"
)

// Recorder records events of one component.
type Recorder struct {
	*writer

	component string
}

// writer writes the events of all recorders of a process.
type writer struct {
	c        *client.Client
	instance string
	queue    chan *pending
	dropped  atomic.Int64

	// Used by Run's goroutine only.
	recent map[series]*written
	order  []series
}

// pending is an event that waits to be written.
type pending struct {
	series      series
	at          time.Time
	traceparent string
	// fence is the epoch in which it was recorded; nil if there was none.
	fence *client.Fence
	// flushed, if set, makes this a marker instead of an event: it is closed once all
	// earlier events have been written.
	flushed chan struct{}
}

// series identifies an event; equal ones are counted.
type series struct {
	about        corev1.ObjectReference
	component    string
	kind, reason string
	message      string
}

type written struct {
	namespace, name string
	count           int32
	last            time.Time
}

const (
	queueSize  = 1024
	batchSize  = 64
	maxSeries  = 1024
	sameSeries = 10 * time.Minute
	// maxMessage is Kubernetes' bound on an event's message.
	maxMessage = 1024
)

// NewRecorder returns a recorder of component, which is the Event's source; instance is
// unique among its processes. Events are written while Run runs.
func NewRecorder(c *client.Client, component, instance string) *Recorder {
	return &Recorder{component: component, writer: &writer{
		c: c, instance: instance, queue: make(chan *pending, queueSize), recent: map[series]*written{},
	}}
}

// As returns a recorder of another component, for instance of one control loop among
// several. It shares the queue, and Run of either writes for both.
func (r *Recorder) As(component string) *Recorder {
	if r == nil {
		return nil
	}
	return &Recorder{component: component, writer: r.writer}
}

// Normal records an event of type Normal. obj needs a kind, name, namespace and uid. The
// event joins the trace of ctx and carries its fence.
func (r *Recorder) Normal(ctx context.Context, obj client.Object, reason, format string, args ...any) {
	r.record(ctx, obj, corev1.EventTypeNormal, reason, format, args)
}

// Warning records an event of type Warning; see Normal.
func (r *Recorder) Warning(ctx context.Context, obj client.Object, reason, format string, args ...any) {
	r.record(ctx, obj, corev1.EventTypeWarning, reason, format, args)
}

func (r *Recorder) record(ctx context.Context, obj client.Object, kind, reason, format string, args []any) {
	if r == nil {
		return
	}
	k := client.KindOf(obj)
	if k == nil {
		return
	}
	r.About(ctx, corev1.ObjectReference{
		APIVersion: k.APIVersion(), Kind: k.GVK.Kind,
		Namespace: obj.GetNamespace(), Name: obj.GetName(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(),
	}, kind, reason, fmt.Sprintf(format, args...))
}

// About records an event about a reference, for instance to one container. kind is Normal or
// Warning, the type of the event.
func (r *Recorder) About(ctx context.Context, about corev1.ObjectReference, kind, reason, message string) {
	if len(message) > maxMessage {
		message = message[:maxMessage-3] + "..."
	}
	about.ResourceVersion = "" // a series continues when its object changes
	select {
	case r.queue <- &pending{
		series:      series{about: about, component: r.component, kind: kind, reason: reason, message: message},
		at:          time.Now(),
		traceparent: telemetry.Traceparent(ctx),
		fence:       client.FenceFrom(ctx),
	}:
	default:
		r.dropped.Add(1)
	}
}

// Dropped returns the number of events that were dropped because the queue was full.
func (r *writer) Dropped() int64 { return r.dropped.Load() }

// flushTime bounds Flush, to a small part of the time that a handover may take.
const flushTime = 300 * time.Millisecond

// Flush waits, 300 ms at most, until the events recorded so far have been written. A leader
// calls it before it releases its Lease, as they would be refused afterwards.
func (r *Recorder) Flush() {
	if r == nil {
		return
	}
	timeout := time.NewTimer(flushTime)
	defer timeout.Stop()
	p := &pending{flushed: make(chan struct{})}
	select {
	case r.queue <- p:
	case <-timeout.C:
		return
	}
	select {
	case <-p.flushed:
	case <-timeout.C:
	}
}

// Run writes events until ctx ends. It then writes, within a second, those that wait.
func (r *writer) Run(ctx context.Context) error {
	for {
		select {
		case p := <-r.queue:
			r.write(ctx, r.batch(p))
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			select {
			case p := <-r.queue:
				r.write(last, r.batch(p))
			default:
			}
			return nil
		}
	}
}

// batch returns first and the events that wait behind it.
func (r *writer) batch(first *pending) []*pending {
	batch := []*pending{first}
	for len(batch) < batchSize {
		select {
		case p := <-r.queue:
			batch = append(batch, p)
		default:
			return batch
		}
	}
	return batch
}

// write writes a batch, with one request for each run of events of one epoch.
func (r *writer) write(ctx context.Context, batch []*pending) {
	for len(batch) > 0 {
		if done := batch[0].flushed; done != nil {
			close(done)
			batch = batch[1:]
			continue
		}
		n := 1
		for n < len(batch) && batch[n].flushed == nil && batch[n].fence == batch[0].fence {
			n++
		}
		same := ctx
		if f := batch[0].fence; f != nil {
			same = client.WithFence(ctx, f)
		}
		r.commit(same, batch[:n])
		batch = batch[n:]
	}
}

func (r *writer) commit(ctx context.Context, batch []*pending) {
	writes := make([]client.Write, 0, len(batch))
	for _, p := range batch {
		writes = append(writes, r.one(p).WithTraceparent(p.traceparent))
	}
	results, err := r.c.CommitQuietly(ctx, writes...)
	if err != nil {
		for _, p := range batch {
			delete(r.recent, p.series)
		}
		r.dropped.Add(int64(len(batch)))
		slog.DebugContext(ctx, "events were not written", "count", len(batch), "error", err)
		return
	}
	for i, res := range results {
		switch {
		case res.Err == nil:
		case apierrors.IsNotFound(res.Err):
			// The event to count up has expired, or the namespace is gone.
			delete(r.recent, batch[i].series)
		default:
			delete(r.recent, batch[i].series)
			r.dropped.Add(1)
			slog.DebugContext(ctx, "event was not written", "reason", batch[i].series.reason, "error", res.Err)
		}
	}
}

// one returns the write for an event: a new one, or a higher count of a recent one.
func (r *writer) one(p *pending) client.Write {
	at := metav1.NewTime(p.at)
	if w := r.recent[p.series]; w != nil && p.at.Sub(w.last) < sameSeries {
		w.count++
		w.last = p.at
		patch, err := json.Marshal(map[string]any{"count": w.count, "lastTimestamp": at})
		if err == nil {
			return client.PatchWrite[*corev1.Event](w.namespace, w.name, types.MergePatchType, patch)
		}
	}
	s := p.series
	namespace := s.about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	ev := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      fmt.Sprintf("%.200s.%x", s.about.Name, p.at.UnixNano()),
		},
		InvolvedObject: s.about,
		Type:           s.kind, Reason: s.reason, Message: s.message,
		Source:         corev1.EventSource{Component: s.component},
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		ReportingController: s.component, ReportingInstance: r.instance,
	}
	r.remember(s, &written{namespace: namespace, name: ev.Name, count: 1, last: p.at})
	return client.CreateWrite(ev)
}

func (r *writer) remember(s series, w *written) {
	if r.recent[s] == nil {
		if len(r.order) == maxSeries {
			delete(r.recent, r.order[0])
			r.order = r.order[1:]
		}
		r.order = append(r.order, s)
	}
	r.recent[s] = w
}
