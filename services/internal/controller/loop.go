package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"keelson.dev/services/internal/leader"
	"keelson.dev/services/internal/telemetry"
)

const minBackoff = 10 * time.Millisecond

// loop runs one controller.
type loop struct {
	Controller

	ctx    context.Context // of Run
	queue  *queue
	wg     sync.WaitGroup
	active int // workers; under queue.mu
	warned time.Time
	tracer trace.Tracer
}

func newLoop(c Controller) *loop {
	if c.Workers <= 0 {
		c.Workers = 2
	}
	if c.Timeout <= 0 {
		c.Timeout = time.Minute
	}
	if c.MaxBackoff <= 0 {
		c.MaxBackoff = 30 * time.Second
	}
	if c.MaxQueue <= 0 {
		c.MaxQueue = 100_000
	}
	l := &loop{Controller: c, tracer: otel.Tracer("keelson.dev/services/internal/controller")}
	l.queue = newQueue(c.MaxQueue, l.wake, l.full)
	l.queue.extend = c.Extend
	return l
}

func (l *loop) run(ctx context.Context) {
	for _, s := range l.Sources {
		if !wait(ctx, s.synced) {
			return
		}
	}
	for _, s := range l.Synced {
		if !wait(ctx, s) {
			return
		}
	}
	l.ctx = ctx
	// The queue closes first, so that a source that waits for room can leave.
	var leave []func()
	stop := context.AfterFunc(ctx, l.queue.close)
	defer stop()
	for _, s := range l.Sources {
		leave = append(leave, s.subscribe(l.queue.add))
	}
	if l.Started != nil {
		l.Started()
	}
	<-ctx.Done()
	l.queue.close()
	for _, f := range leave {
		f()
	}
	l.wg.Wait()
	queueLength.WithLabelValues(l.Name).Set(0)
}

func wait(ctx context.Context, synced <-chan struct{}) bool {
	if synced == nil {
		return true
	}
	select {
	case <-synced:
		return true
	case <-ctx.Done():
		return false
	}
}

// wake starts a worker for a ready key, unless Workers run already. Workers end when no key
// is ready. queue.mu is held.
func (l *loop) wake() {
	queueLength.WithLabelValues(l.Name).Set(float64(l.queue.length()))
	if l.active < l.Workers {
		l.active++
		l.wg.Go(l.work)
	}
}

// full logs that the queue is full. queue.mu is held.
func (l *loop) full() {
	queueFull.WithLabelValues(l.Name).Inc()
	if now := time.Now(); now.Sub(l.warned) > 10*time.Second {
		l.warned = now
		slog.WarnContext(context.Background(), "the queue is full: events wait", "controller", l.Name, "keys", l.MaxQueue)
	}
}

func (l *loop) work() {
	for {
		l.queue.mu.Lock()
		j, ok := l.queue.next()
		if !ok {
			l.active--
			l.queue.mu.Unlock()
			return
		}
		queueLength.WithLabelValues(l.Name).Set(float64(l.queue.length()))
		l.queue.mu.Unlock()
		l.process(j)
	}
}

func (l *loop) process(j job) {
	queueAdds.WithLabelValues(l.Name).Inc()
	queueWait.WithLabelValues(l.Name).Observe(j.waited.Seconds())
	base, err := leader.Await(l.ctx)
	if err != nil {
		l.queue.done(j, true, 0) // the end: the queue is closed.
		return
	}
	if l.Fresh != nil {
		if err := l.Fresh(j.entry.key); err != nil {
			reconciles.WithLabelValues(l.Name, "stale").Inc()
			queueRetries.WithLabelValues(l.Name).Inc()
			l.queue.done(j, true, l.backoff(j.tries))
			return
		}
	}
	ctx, span := l.span(base, j)
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	start := time.Now()
	result, err := l.reconcile(ctx, j.entry.key)
	cancel()
	reconcileTime.WithLabelValues(l.Name).Observe(time.Since(start).Seconds())
	outcome, retry := "ok", result.RequeueAfter
	if err != nil {
		outcome, retry = "error", l.backoff(j.tries)
		queueRetries.WithLabelValues(l.Name).Inc()
		l.report(ctx, j, err, retry)
	}
	reconciles.WithLabelValues(l.Name, outcome).Inc()
	if span != nil {
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, err.Error())
		}
		if retry > 0 {
			span.SetAttributes(attribute.Int64("keelson.requeue_ms", retry.Milliseconds()))
		}
		// The span of a reconcile without writes is of no use: it is not ended, and so
		// never exported.
		if parent, ok := span.(interface{ ChildSpanCount() int }); !ok || err != nil || parent.ChildSpanCount() > 0 {
			span.End()
		}
	}
	l.queue.done(j, err != nil, retry)
}

// span starts the span of a reconcile that a traced write caused, and returns nil for others.
func (l *loop) span(ctx context.Context, j job) (context.Context, trace.Span) {
	if len(j.traces) == 0 {
		return ctx, nil
	}
	opts := []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			attribute.String("keelson.controller", l.Name),
			attribute.String("k8s.namespace.name", j.entry.key.Namespace),
			attribute.String("k8s.object.name", j.entry.key.Name),
			attribute.Int64("keelson.queue_ms", j.waited.Milliseconds()),
			attribute.Int("keelson.attempt", j.tries+1),
		),
	}
	for _, tp := range j.traces[1:] {
		if link, ok := telemetry.Link(tp); ok {
			opts = append(opts, trace.WithLinks(link))
		}
	}
	return l.tracer.Start(telemetry.ContextWithTraceparent(ctx, j.traces[0]), "reconcile "+l.Name, opts...)
}

func (l *loop) reconcile(ctx context.Context, key Key) (result Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			panics.WithLabelValues(l.Name).Inc()
			slog.ErrorContext(ctx, "panic in reconcile", "controller", l.Name, "key", key.String(), "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return l.Reconcile(ctx, key)
}

func (l *loop) backoff(failures int) time.Duration {
	d := l.MaxBackoff
	if failures < 16 {
		d = min(d, minBackoff<<failures)
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter needs no secrecy.
}

func (l *loop) report(ctx context.Context, j job, err error, retry time.Duration) {
	level := slog.LevelWarn
	switch {
	case errors.Is(err, context.Canceled):
		level = slog.LevelDebug // its context ended: the term is over, or pauses
	case errors.Is(err, ErrStale), apierrors.IsConflict(err):
		level = slog.LevelDebug // expected: the cache catches up
	}
	slog.Log(ctx, level, "reconcile failed", "controller", l.Name, "key", j.entry.key.String(),
		"error", err, "attempt", j.tries+1, "retry", retry)
}
