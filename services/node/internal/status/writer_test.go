package status

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
)

// recorder is an API that counts calls and can be blocked or made to fail.
type recorder struct {
	*client.Client
	mu      sync.Mutex
	commits int
	writes  int
	fail    error
	hold    chan struct{}
}

func (r *recorder) Commit(ctx context.Context, writes ...client.Write) ([]client.WriteResult, error) {
	r.mu.Lock()
	r.commits++
	r.writes += len(writes)
	fail, hold := r.fail, r.hold
	r.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if fail != nil {
		return nil, fail
	}
	return r.Client.Commit(ctx, writes...)
}

func (r *recorder) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return client.For[*corev1.Pod](r.Client).Get(ctx, namespace, name)
}

func (r *recorder) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

type writerRig struct {
	t   *testing.T
	api *recorder
	w   *Writer
	// cache stands for the watch cache. Tests change it directly.
	mu    sync.Mutex
	cache map[string]*corev1.Pod
}

func newWriterRig(t *testing.T) *writerRig {
	r := &writerRig{t: t, api: &recorder{Client: clienttest.Start(t)}, cache: map[string]*corev1.Pod{}}
	r.w = NewWriter(r.api, func(_, name string) (*corev1.Pod, bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		p, ok := r.cache[name]
		return p, ok
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *writerRig) create(name string) *corev1.Pod {
	r.t.Helper()
	p, err := client.For[*corev1.Pod](r.api.Client).Create(context.Background(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "n", UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: "node"}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.cache[name] = p
	r.mu.Unlock()
	return p
}

func (r *writerRig) get(name string) *corev1.Pod {
	r.t.Helper()
	p, err := client.For[*corev1.Pod](r.api.Client).Get(context.Background(), "n", name)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("timed out waiting until " + what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func reason(text string) *corev1.PodStatus {
	return &corev1.PodStatus{Phase: corev1.PodRunning, Reason: text}
}

// TestCoalesce checks that only the newest of several statuses that are set during a write
// is written afterwards.
func TestCoalesce(t *testing.T) {
	r := newWriterRig(t)
	p := r.create("p")
	hold := make(chan struct{})
	r.api.set(func() { r.api.hold = hold })
	r.w.Set(p, reason("0"), "")
	until(t, "a write is in progress", func() bool { r.api.mu.Lock(); defer r.api.mu.Unlock(); return r.api.commits == 1 })
	for _, text := range []string{"1", "2", "3"} {
		r.w.Set(p, reason(text), "")
	}
	r.api.set(func() { r.api.hold = nil })
	close(hold)
	until(t, "the newest status is written", func() bool { return r.get("p").Status.Reason == "3" })
	r.api.mu.Lock()
	defer r.api.mu.Unlock()
	if r.api.writes != 2 {
		t.Errorf("%d writes, want 2", r.api.writes)
	}
}

// TestUnchanged checks that an unchanged status is not written.
func TestUnchanged(t *testing.T) {
	r := newWriterRig(t)
	p := r.create("p")
	r.w.Set(p, reason("x"), "")
	until(t, "the status is written", func() bool { return r.get("p").Status.Reason == "x" })
	version := r.get("p").ResourceVersion
	r.w.Set(p, reason("x"), "")
	other := r.create("other")
	r.w.Set(other, reason("y"), "")
	until(t, "the other pod's status is written", func() bool { return r.get("other").Status.Reason == "y" })
	if got := r.get("p").ResourceVersion; got != version {
		t.Errorf("version %s became %s", version, got)
	}
}

// TestContradicted checks that the next Set restores a status that another client changed,
// even if it sets the same status again.
func TestContradicted(t *testing.T) {
	r := newWriterRig(t)
	p := r.create("p")
	want := reason("x")
	want.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	r.w.Set(p, want, "")
	until(t, "the status is written", func() bool { return r.get("p").Status.Reason == "x" })
	p = r.get("p")
	p.Status.Conditions[0].Status = corev1.ConditionFalse
	p, err := client.For[*corev1.Pod](r.api.Client).UpdateStatus(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.cache["p"] = p
	r.mu.Unlock()
	r.w.Set(p, want, "")
	until(t, "the condition is restored", func() bool { return r.get("p").Status.Conditions[0].Status == corev1.ConditionTrue })
}

// TestConflict checks that after a conflict the pod is read again, and that conditions of
// other writers are kept.
func TestConflict(t *testing.T) {
	r := newWriterRig(t)
	p := r.create("p")
	newer := r.get("p")
	newer.Status.Conditions = []corev1.PodCondition{{Type: "example.com/other", Status: corev1.ConditionTrue}}
	if _, err := client.For[*corev1.Pod](r.api.Client).UpdateStatus(context.Background(), newer); err != nil {
		t.Fatal(err)
	}
	want := reason("x")
	want.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	r.w.Set(p, want, "")
	until(t, "the status is written", func() bool { return r.get("p").Status.Reason == "x" })
	s := r.get("p").Status
	if condition(&s, "example.com/other") == nil || condition(&s, corev1.PodReady) == nil {
		t.Errorf("conditions: %+v", s.Conditions)
	}
}

// TestRetry checks that a failed write is retried.
func TestRetry(t *testing.T) {
	r := newWriterRig(t)
	p := r.create("p")
	r.api.set(func() { r.api.fail = errors.New("unavailable") })
	r.w.Set(p, reason("x"), "")
	until(t, "the write was retried", func() bool { r.api.mu.Lock(); defer r.api.mu.Unlock(); return r.api.commits >= 2 })
	r.api.set(func() { r.api.fail = nil })
	until(t, "the status is written", func() bool { return r.get("p").Status.Reason == "x" })
}

// TestNeverBack checks that a final phase is kept, whatever phase is set.
func TestNeverBack(t *testing.T) {
	r := newWriterRig(t)
	p := r.create("p")
	done := r.get("p")
	done.Status.Phase = corev1.PodFailed
	if _, err := client.For[*corev1.Pod](r.api.Client).UpdateStatus(context.Background(), done); err != nil {
		t.Fatal(err)
	}
	r.w.Set(p, reason("x"), "")
	until(t, "the status is written", func() bool { return r.get("p").Status.Reason == "x" })
	if got := r.get("p").Status.Phase; got != corev1.PodFailed {
		t.Errorf("phase: %s", got)
	}
}

// TestRemove checks that the last status is written before the object is deleted, and that
// another pod of the same name is left alone.
func TestRemove(t *testing.T) {
	r := newWriterRig(t)
	ctx := context.Background()
	pods := client.For[*corev1.Pod](r.api.Client)
	p := r.create("p")
	seen := make(chan string, 10)
	watch, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ev, err := range pods.Watch(watch, client.WatchOptions{Namespace: "n", Name: "p", ResourceVersion: p.ResourceVersion}) {
			if err != nil {
				return
			}
			seen <- ev.Type.String() + " " + ev.Object.Status.Reason
		}
	}()
	r.w.Set(p, reason("last"), "")
	r.w.Remove(p, "")
	until(t, "the pod is gone", func() bool { _, err := pods.Get(ctx, "n", "p"); return err != nil })
	if first := <-seen; first != "Modified last" {
		t.Errorf("first event: %q, want the modification with the last status", first)
	}
	cancel()
	<-watched
	other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "another"}, Spec: corev1.PodSpec{NodeName: "node"}}
	if _, err := pods.Create(ctx, other); err != nil {
		t.Fatal(err)
	}
	r.w.Remove(p, "")
	marker := r.create("marker")
	r.w.Set(marker, reason("after"), "")
	until(t, "the writer has written another pod", func() bool { return r.get("marker").Status.Reason == "after" })
	until(t, "the writer has dropped its entry", func() bool { r.w.mu.Lock(); defer r.w.mu.Unlock(); return r.w.entries[p.UID] == nil })
	if _, err := pods.Get(ctx, "n", "p"); err != nil {
		t.Errorf("the other pod of the same name: %v", err)
	}
}
