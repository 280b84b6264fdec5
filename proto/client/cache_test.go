package client_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func create(t *testing.T, c *client.Client, name string) *corev1.ConfigMap {
	t.Helper()
	cm, err := client.For[*corev1.ConfigMap](c).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{"big": "value"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return cm
}

func run(t *testing.T, cache interface{ Run(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func within(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-tick.C:
		}
	}
}

// If a server refuses to send initial state in a watch, the cache lists instead.
func TestCacheFallsBackToList(t *testing.T) {
	s, c := clienttest.StartServer(t)
	s.RefuseStreamingLists()
	create(t, c, "a")
	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{})
	run(t, cache)
	<-cache.Synced()
	if cache.Len() != 1 || cache.Revision() != s.Revision() {
		t.Errorf("%d objects at revision %d of %d", cache.Len(), cache.Revision(), s.Revision())
	}
	create(t, c, "b")
	within(t, "an event after the list", func() bool { return cache.Len() == 2 })
}

func TestCacheTransforms(t *testing.T) {
	_, c := clienttest.StartServer(t)
	cm := create(t, c, "a")
	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{
		Transform: func(cm *corev1.ConfigMap) *corev1.ConfigMap { cm.Annotations = nil; return cm },
	})
	var deleted atomic.Int32
	cache.Subscribe(func(ev client.Event[*corev1.ConfigMap]) {
		if ev.Object.Annotations != nil {
			t.Errorf("%s: annotations were kept", ev.Type)
		}
		if ev.Type == client.Deleted {
			deleted.Add(1)
		}
	})
	run(t, cache)
	<-cache.Synced()
	if err := client.For[*corev1.ConfigMap](c).Delete(t.Context(), "default", cm.Name); err != nil {
		t.Fatal(err)
	}
	within(t, "the deletion", func() bool { return deleted.Load() == 1 })
}

// An index finds objects that were in the cache before it was added, and later ones.
func TestCacheAddsIndexes(t *testing.T) {
	c := clienttest.Start(t)
	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{})
	run(t, cache)
	create(t, c, "before")
	within(t, "the first object", func() bool { return cache.Len() == 1 })
	byName := func(cm *corev1.ConfigMap) []string { return []string{cm.Name} }
	cache.AddIndex("name", byName)
	cache.AddIndex("name", func(*corev1.ConfigMap) []string { return nil }) // the first one stays
	if got := cache.ByIndex("name", "before"); len(got) != 1 {
		t.Errorf("%d objects from before the index was added, want 1", len(got))
	}
	create(t, c, "after")
	within(t, "the second object", func() bool { return len(cache.ByIndex("name", "after")) == 1 })
	if err := client.For[*corev1.ConfigMap](c).Delete(t.Context(), "default", "before"); err != nil {
		t.Fatal(err)
	}
	within(t, "the deletion", func() bool { return len(cache.ByIndex("name", "before")) == 0 })
}

// The cache retries while a server refuses the watch, and Err returns the reason.
func TestCacheKeepsTrying(t *testing.T) {
	s, c := clienttest.StartServer(t)
	var asked atomic.Int32
	var seen atomic.Bool
	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Watch" && (asked.Add(1) <= 3 || !seen.Load()) {
			return apierrors.NewForbidden(corev1.Resource("configmaps"), "", errors.New("not yet"))
		}
		return nil
	})
	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{})
	run(t, cache)
	within(t, "the error to show", func() bool { return apierrors.IsForbidden(cache.Err()) })
	seen.Store(true)
	<-cache.Synced()
	if cache.Err() != nil {
		t.Errorf("error after the sync: %v", cache.Err())
	}
}

// Errors without a Status keep their code; those of a context are its own.
func TestErrors(t *testing.T) {
	s, c := clienttest.StartServer(t)
	maps := client.For[*corev1.ConfigMap](c)
	s.Fail(func(string, *resourcev1.Ref) error { return status.Error(codes.DataLoss, "gone") })
	if _, err := maps.Get(t.Context(), "default", "a"); status.Code(err) != codes.DataLoss {
		t.Errorf("plain gRPC error: %v", err)
	}
	s.Fail(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := maps.Get(ctx, "default", "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	dead, err := client.Dial(client.Config{Endpoints: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dead.Close() }()
	if _, err := client.For[*corev1.ConfigMap](dead).Create(t.Context(), &corev1.ConfigMap{}); !client.IsUnavailable(err) {
		t.Errorf("no server: %v", err)
	}
}

func TestKinds(t *testing.T) {
	names := map[string]bool{}
	for _, k := range client.Kinds() {
		if names[k.ProtoName] {
			t.Errorf("%s twice", k.ProtoName)
		}
		names[k.ProtoName] = true
		if client.KindOf(k.New()) != k {
			t.Errorf("%s is not found by its type", k.GVK)
		}
		if k.Resource != "" && (client.KindFor(k.GVK) != k || client.KindForResource(k.GVR()) != k) {
			t.Errorf("%s is not found by its name", k.GVK)
		}
	}
	pod := client.KindOf(&corev1.Pod{})
	if pod.ProtoName != "k8s.io.api.core.v1.Pod" || pod.GVK.String() != "/v1, Kind=Pod" || pod.Resource != "pods" {
		t.Errorf("pod: %+v", pod)
	}
}

// A document for Apply names exactly the fields that its manager will own.
func TestConfiguration(t *testing.T) {
	zero := int64(0)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &zero,
			Containers:                    []corev1.Container{{Name: "c"}},
			Volumes:                       []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
	got, err := client.Configuration(client.KindOf(pod), pod)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"b"},` +
		`"spec":{"containers":[{"name":"c"}],"terminationGracePeriodSeconds":0,"volumes":[{"emptyDir":{},"name":"v"}]}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A cache whose watch is delayed has not caught up before it shows what was written in the
// meantime: a new object, a change, and a deletion.
func TestCatchUp(t *testing.T) {
	s, c := clienttest.StartServer(t)
	maps := client.For[*corev1.ConfigMap](c)
	changed, gone := create(t, c, "changed"), create(t, c, "gone")
	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{})
	run(t, cache)
	<-cache.Synced()
	if err := cache.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}

	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Watch" {
			return status.Error(codes.Unavailable, "held up")
		}
		return nil
	})
	s.Cut()
	within(t, "the watch to break", func() bool { return cache.Err() != nil })
	create(t, c, "new")
	changed.Data = map[string]string{"k": "v"}
	if _, err := maps.Update(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(t.Context(), "default", gone.Name); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := cache.CatchUp(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("caught up while the watch was held up: %v", err)
	}
	s.Fail(nil)
	if err := cache.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, ok := cache.Get("default", "changed")
	_, stays := cache.Get("default", "gone")
	_, comes := cache.Get("default", "new")
	if !ok || got.Data["k"] != "v" || stays || !comes {
		t.Errorf("changed %v, gone %v, new %v", got, stays, comes)
	}
}

// If a server never had the cache's revision (it was restored), the cache lists again.
func TestCacheOfARestoredServer(t *testing.T) {
	s, c := clienttest.StartServer(t)
	create(t, c, "a")
	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{})
	run(t, cache)
	<-cache.Synced()
	var refused atomic.Bool
	s.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Watch" && refused.CompareAndSwap(false, true) {
			err := apierrors.NewTimeoutError("Too large resource version", 1)
			err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge}}
			return err
		}
		return nil
	})
	s.Cut()
	s.Compact() // a resume would expire.
	create(t, c, "b")
	within(t, "the new state", func() bool { return cache.Len() == 2 && refused.Load() })
}
