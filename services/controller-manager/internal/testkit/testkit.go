// Package testkit is shared by the controllers' behavior tests: an in-memory cluster
// with running caches, controllers on it, and a minimal kubelet.
package testkit

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
)

// World is a cluster under test.
type World struct {
	*testing.T

	Server  *clienttest.Server
	Client  *client.Client
	Cluster *cluster.Cluster

	mu  sync.Mutex
	end []func()
}

// Start returns a cluster whose caches run, and are synced, from when they are made.
func Start(t *testing.T) *World {
	t.Helper()
	server, c := clienttest.StartServer(t)
	events := event.NewRecorder(c, "test", "test-0")
	w := &World{T: t, Server: server, Client: c}
	w.Cluster = cluster.New(c, events, func(cache cluster.Cache) {
		w.Go(cache.Run)
		<-cache.Synced()
	})
	t.Cleanup(w.stop)
	w.Go(events.Run)
	return w
}

// stop stops what Go started, in reverse order.
func (w *World) stop() {
	for {
		w.mu.Lock()
		n := len(w.end)
		if n == 0 {
			w.mu.Unlock()
			return
		}
		f := w.end[n-1]
		w.end = w.end[:n-1]
		w.mu.Unlock()
		f()
	}
}

// Go runs f until the test ends, or until the returned function is called.
func (w *World) Go(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil && ctx.Err() == nil {
			w.Errorf("a goroutine failed: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	w.mu.Lock()
	w.end = append(w.end, stop)
	w.mu.Unlock()
	return stop
}

// Run runs controllers until the test ends or they are stopped.
func (w *World) Run(controllers ...controller.Controller) (stop func()) {
	return w.Go(func(ctx context.Context) error { return controller.Run(ctx, controllers...) })
}

// CatchUp waits until the caches show everything that was written before. Each
// kind comes by a watch of its own: without it, a controller may see a later
// object of one kind before an earlier one of another.
func (w *World) CatchUp() {
	w.Helper()
	if err := w.Cluster.CatchUpAll(w.Context()); err != nil {
		w.Fatalf("caches do not catch up: %v", err)
	}
}

// Eventually waits up to a minute for a condition.
func (w *World) Eventually(what string, cond func() bool) {
	w.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			w.Fatalf("still waiting after a minute: %s", what)
		case <-tick.C:
		}
	}
}

// rest is how long no write must happen before the controllers are considered idle.
const rest = 150 * time.Millisecond

// Never checks that a condition does not become true before the controllers are idle.
// Each write restarts the idle time once all caches show it, because a controller may
// react to it.
func (w *World) Never(what string, cond func() bool) {
	w.Helper()
	if err := w.never(cond); err != nil {
		w.Fatalf("%s: %v", what, err)
	}
}

func (w *World) never(cond func() bool) error {
	began := time.Now()
	quiet, seen, writes := began, w.Server.Revision(), uint64(0)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if cond() {
			return fmt.Errorf("happened after %d writes", writes)
		}
		switch now := w.Server.Revision(); {
		case now != seen:
			writes, seen = writes+now-seen, now
			w.CatchUp()
			quiet = time.Now()
		case time.Since(quiet) >= rest:
			return nil
		case time.Since(began) >= time.Minute:
			return fmt.Errorf("the controllers do not come to rest: %d writes in a minute", writes)
		}
		<-tick.C
	}
}

// Create stores an object.
func Create[T client.Object](w *World, obj T) T {
	w.Helper()
	got, err := client.For[T](w.Client).Create(w.Context(), obj)
	if err != nil {
		w.Fatalf("create %T %s: %v", obj, obj.GetName(), err)
	}
	return got
}

// Get reads an object, straight from the server; the test fails without it.
func Get[T client.Object](w *World, namespace, name string) T {
	w.Helper()
	got, err := client.For[T](w.Client).Get(w.Context(), namespace, name)
	if err != nil {
		w.Fatalf("get %s: %v", name, err)
	}
	return got
}

// Exists reports whether an object exists.
func Exists[T client.Object](w *World, namespace, name string) bool {
	_, err := client.For[T](w.Client).Get(w.Context(), namespace, name)
	return err == nil
}

// List reads a collection, straight from the server.
func List[T client.Object](w *World, namespace string) []T {
	w.Helper()
	got, _, err := client.For[T](w.Client).List(w.Context(), client.ListOptions{Namespace: namespace})
	if err != nil {
		w.Fatalf("list: %v", err)
	}
	return got
}

// Update changes an object, and tries again after a conflict.
func Update[T client.Object](w *World, namespace, name string, change func(T), opts ...client.WriteOption) T {
	w.Helper()
	var got T
	w.Eventually("update of "+name, func() bool {
		obj := Get[T](w, namespace, name)
		change(obj)
		var err error
		got, err = client.For[T](w.Client).Update(w.Context(), obj, opts...)
		return err == nil
	})
	return got
}

// Delete deletes an object.
func Delete[T client.Object](w *World, namespace, name string, opts ...client.DeleteOption) {
	w.Helper()
	if err := client.For[T](w.Client).Delete(w.Context(), namespace, name, opts...); err != nil {
		w.Fatalf("delete %s: %v", name, err)
	}
}

// Kubelet binds pods to the node, reports them as ready, and removes those that are
// deleted. It ignores pods for which skip, if not nil, returns true.
func (w *World) Kubelet(node string, skip func(*corev1.Pod) bool) {
	pods := client.For[*corev1.Pod](w.Client)
	w.Go(func(ctx context.Context) error {
		for ev, err := range pods.Watch(ctx, client.WatchOptions{SendInitialEvents: true}) {
			if err != nil {
				return err
			}
			p := ev.Object
			switch {
			case ev.Type == client.Bookmark || ev.Type == client.Deleted || skip != nil && skip(p):
			case p.DeletionTimestamp != nil:
				_ = pods.Delete(ctx, p.Namespace, p.Name, client.Grace(0), client.UID(p.UID))
			case p.Spec.NodeName == "":
				_ = client.Bind(ctx, w.Client, p, node)
			case p.Status.Phase == "":
				_, _ = pods.UpdateStatus(ctx, Ready(p))
			}
		}
		return nil
	})
}

// Ready returns the pod as running and ready.
func Ready(p *corev1.Pod) *corev1.Pod {
	p = p.DeepCopy()
	now := metav1.Now()
	p.Status.Phase = corev1.PodRunning
	p.Status.StartTime = &now
	p.Status.PodIP = "10.244.0.1"
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}}
	return p
}

// Same compares two values and shows them as JSON if they differ.
func Same(t testing.TB, what string, got, want any) {
	t.Helper()
	if reflect.DeepEqual(got, want) {
		return
	}
	g, err1 := json.Marshal(got)
	w, err2 := json.Marshal(want)
	if err1 != nil || err2 != nil {
		t.Errorf("%s: got %v, want %v", what, got, want)
		return
	}
	t.Errorf("%s:\n got %s\nwant %s", what, g, w)
}
