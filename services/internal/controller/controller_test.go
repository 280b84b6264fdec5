package controller_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/internal/controller"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type world struct {
	t     *testing.T
	c     *client.Client
	maps  client.Resource[*corev1.ConfigMap]
	cache *client.Cache[*corev1.ConfigMap]
}

func start(t *testing.T) *world {
	t.Helper()
	c := clienttest.Start(t)
	w := &world{t: t, c: c, maps: client.For[*corev1.ConfigMap](c), cache: client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{})}
	background(t, w.cache.Run)
	<-w.cache.Synced()
	return w
}

// warm waits until the controller follows the cache. Objects that existed before have no cause.
func (w *world) warm(reconciled func() bool) {
	w.t.Helper()
	w.create(w.t.Context(), "warm-up")
	eventually(w.t, "the controller follows", reconciled)
}

// background runs f until the test ends.
func background(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func (w *world) create(ctx context.Context, name string) *corev1.ConfigMap {
	w.t.Helper()
	cm, err := w.maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
	if err != nil {
		w.t.Fatal(err)
	}
	return cm
}

func (w *world) touch(ctx context.Context, cm *corev1.ConfigMap, value string) *corev1.ConfigMap {
	w.t.Helper()
	cm.Data = map[string]string{"v": value}
	cm, err := w.maps.Update(ctx, cm)
	if err != nil {
		w.t.Fatal(err)
	}
	return cm
}

func (w *world) run(c controller.Controller) (stop func()) {
	w.t.Helper()
	c.Name = w.t.Name()
	if c.Sources == nil {
		c.Sources = []controller.Source{controller.Objects(w.cache)}
	}
	return background(w.t, func(ctx context.Context) error { return controller.Run(ctx, c) })
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("timed out waiting for: %s", what)
		case <-tick.C:
		}
	}
}

func TestReconcilesWhatExistsAndWhatChanges(t *testing.T) {
	w := start(t)
	w.create(t.Context(), "before")
	var seen sync.Map
	w.run(controller.Controller{Reconcile: func(_ context.Context, key controller.Key) (controller.Result, error) {
		seen.Store(key.Name, true)
		return controller.Result{}, nil
	}})
	w.create(t.Context(), "after")
	for _, name := range []string{"before", "after"} {
		eventually(t, name, func() bool { _, ok := seen.Load(name); return ok })
	}
}

// A key is never reconciled concurrently; events that arrive meanwhile cause one more reconcile,
// linked to all of them.
func TestCoalesces(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(provider)
	t.Cleanup(func() { otel.SetTracerProvider(before) })

	w := start(t)
	var running, most, total atomic.Int32
	var warm atomic.Bool
	gate := make(chan struct{})
	w.run(controller.Controller{Workers: 4, Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
		if key.Name == "warm-up" {
			warm.Store(true)
			return controller.Result{}, nil
		}
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		total.Add(1)
		<-gate
		_, span := otel.Tracer("test").Start(ctx, "write")
		span.End()
		return controller.Result{}, nil
	}})
	w.warm(warm.Load)
	// Subscribers are called in order, so the controller has received what this one has.
	var seen atomic.Value
	unsubscribe := w.cache.Subscribe(func(ev client.Event[*corev1.ConfigMap]) { seen.Store(ev.Object.ResourceVersion) })
	t.Cleanup(unsubscribe)
	caused := func(i int) context.Context {
		return metadata.AppendToOutgoingContext(t.Context(), "traceparent",
			fmt.Sprintf("00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333%d-01", i))
	}
	cm := w.create(caused(1), "a")
	eventually(t, "the first reconcile", func() bool { return total.Load() == 1 })
	for i := 2; i <= 4; i++ {
		cm = w.touch(caused(i), cm, fmt.Sprint(i))
	}
	eventually(t, "the controller to follow", func() bool { return seen.Load() == cm.ResourceVersion })
	close(gate)
	reconciles := func() (out []sdktrace.ReadOnlySpan) {
		for _, s := range spans.Ended() {
			if s.Name() != "write" {
				out = append(out, s)
			}
		}
		return out
	}
	eventually(t, "both spans", func() bool { return len(reconciles()) == 2 })
	if most.Load() != 1 || total.Load() != 2 {
		t.Errorf("%d reconciles, %d of them concurrent", total.Load(), most.Load())
	}
	first, second := reconciles()[0], reconciles()[1]
	if first.Parent().SpanID().String() != "b7ad6b7169203331" || second.Parent().SpanID().String() != "b7ad6b7169203332" {
		t.Errorf("parents %s and %s", first.Parent().SpanID(), second.Parent().SpanID())
	}
	if len(second.Links()) != 2 || second.Links()[1].SpanContext.SpanID().String() != "b7ad6b7169203334" {
		t.Errorf("links %v", second.Links())
	}
}

// A reconcile that no write caused has no span; a retry stays in its trace.
func TestSpansOnlyWhereThereIsACause(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	t.Cleanup(func() { otel.SetTracerProvider(before) })

	w := start(t)
	var untraced, traced atomic.Int32
	w.run(controller.Controller{Reconcile: func(_ context.Context, key controller.Key) (controller.Result, error) {
		if key.Name == "untraced" {
			if untraced.Add(1) < 3 {
				return controller.Result{RequeueAfter: time.Millisecond}, nil
			}
			return controller.Result{}, nil
		}
		if traced.Add(1) < 3 {
			return controller.Result{}, errors.New("not yet")
		}
		return controller.Result{}, nil
	}})
	w.create(t.Context(), "untraced")
	eventually(t, "the untraced ones", func() bool { return untraced.Load() == 3 })
	w.create(metadata.AppendToOutgoingContext(t.Context(), "traceparent",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), "traced")
	eventually(t, "all reconciles", func() bool { return untraced.Load() == 3 && traced.Load() == 3 })
	// The third one made no write.
	eventually(t, "all spans", func() bool { return len(spans.Ended()) == 2 })
	for _, s := range spans.Ended() {
		if s.SpanContext().TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
			t.Errorf("span of trace %s", s.SpanContext().TraceID())
		}
	}
}

func TestRetriesWithGrowingDelayAndSurvivesPanics(t *testing.T) {
	w := start(t)
	var mu sync.Mutex
	var times []time.Time
	w.run(controller.Controller{Reconcile: func(context.Context, controller.Key) (controller.Result, error) {
		mu.Lock()
		defer mu.Unlock()
		times = append(times, time.Now())
		switch n := len(times); {
		case n%2 == 0:
			panic("every other time")
		case n < 7:
			return controller.Result{}, errors.New("not yet")
		}
		return controller.Result{}, nil
	}})
	w.create(t.Context(), "a")
	eventually(t, "seven tries", func() bool { mu.Lock(); defer mu.Unlock(); return len(times) == 7 })
	mu.Lock()
	defer mu.Unlock()
	if last := times[6].Sub(times[5]); last < 100*time.Millisecond {
		t.Errorf("the sixth delay was only %v", last)
	}
}

// A full queue delays events and loses none.
func TestQueueIsBounded(t *testing.T) {
	w := start(t)
	for i := range 50 {
		w.create(t.Context(), fmt.Sprintf("n%d", i))
	}
	eventually(t, "the cache", func() bool { return w.cache.Len() == 50 })
	var seen sync.Map
	var total atomic.Int32
	w.run(controller.Controller{MaxQueue: 3, Workers: 1, Reconcile: func(_ context.Context, key controller.Key) (controller.Result, error) {
		if _, again := seen.LoadOrStore(key, true); !again {
			total.Add(1)
		}
		return controller.Result{}, nil
	}})
	eventually(t, "all keys", func() bool { return total.Load() == 50 })
}

// Run ends even if the queue is full and a reconcile blocks until its context ends; it can be started
// again.
func TestStops(t *testing.T) {
	w := start(t)
	for i := range 10 {
		w.create(t.Context(), fmt.Sprintf("n%d", i))
	}
	var hangs atomic.Int32
	hang := controller.Controller{MaxQueue: 2, Workers: 1, Reconcile: func(ctx context.Context, _ controller.Key) (controller.Result, error) {
		hangs.Add(1)
		<-ctx.Done()
		return controller.Result{}, ctx.Err()
	}}
	for range 2 {
		before := hangs.Load()
		stop := w.run(hang)
		eventually(t, "a reconcile hangs", func() bool { return hangs.Load() > before })
		stop()
	}
}

func TestWritesAreSeenBeforeTheNextDecision(t *testing.T) {
	w := start(t)
	writes := controller.NewWrites(w.cache)
	var created atomic.Int32
	w.run(controller.Controller{Workers: 1, Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
		if key.Name != "want" {
			return controller.Result{}, nil
		}
		if err := writes.Fresh(key); err != nil {
			return controller.Result{}, err
		}
		if w.cache.Len() < 4 {
			cm := w.create(ctx, fmt.Sprintf("made%d", created.Add(1)))
			writes.Wrote(key, cm.ResourceVersion)
			return controller.Result{RequeueAfter: time.Nanosecond}, nil
		}
		return controller.Result{}, nil
	}})
	w.create(t.Context(), "want")
	eventually(t, "four objects", func() bool { return w.cache.Len() == 4 })
	if created.Load() != 3 {
		t.Errorf("%d objects were created", created.Load())
	}
}

// Extend is called when a deadline is reached, and the key is reconciled only after the extended one.
// An event causes a reconcile at once, and a retry after a failure is not extended.
func TestExtend(t *testing.T) {
	w := start(t)
	var reconciles, looks atomic.Int32
	var passed atomic.Bool
	w.run(controller.Controller{
		Reconcile: func(context.Context, controller.Key) (controller.Result, error) {
			if reconciles.Add(1) == 1 {
				return controller.Result{}, errors.New("not yet")
			}
			return controller.Result{RequeueAfter: time.Millisecond}, nil
		},
		Extend: func(controller.Key) time.Duration {
			if reconciles.Load() == 1 {
				t.Error("the retry of a failure was to be extended")
			}
			looks.Add(1)
			if passed.Load() {
				return 0
			}
			return time.Millisecond
		},
	})
	cm := w.create(t.Context(), "a")
	eventually(t, "the deadline moves again and again", func() bool { return looks.Load() >= 20 })
	if n := reconciles.Load(); n != 2 {
		t.Errorf("%d reconciles before the deadline, want the failure and its retry", n)
	}
	w.touch(t.Context(), cm, "changed")
	eventually(t, "the event reconciles", func() bool { return reconciles.Load() == 3 })
	seen := looks.Load()
	eventually(t, "the deadline still moves", func() bool { return looks.Load() >= seen+20 })
	if n := reconciles.Load(); n != 3 {
		t.Errorf("%d reconciles after one event, want 3", n)
	}
	passed.Store(true)
	eventually(t, "the deadline passes", func() bool { return reconciles.Load() >= 4 })
}
