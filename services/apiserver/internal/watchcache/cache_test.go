package watchcache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/memory"
	. "keelson.dev/services/apiserver/internal/watchcache"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// started once per process by an etcd package
		goleak.IgnoreAnyFunction("go.etcd.io/etcd/client/pkg/v3/logutil.(*MergeLogger).outputLoop"),
	)
}

var (
	pods = &resource.Kind{
		GVK:      schema.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Resource: "pods", Singular: "pod", Namespaced: true, StorePrefix: "/registry/pods/",
		New:     func() resource.Object { return &corev1.Pod{} },
		NewList: func() runtime.Object { return &corev1.PodList{} },
		Fields: map[string]func(resource.Object) string{
			"spec.nodeName": func(o resource.Object) string { return o.(*corev1.Pod).Spec.NodeName },
		},
	}
	nodes = &resource.Kind{
		GVK:      schema.GroupVersionKind{Version: "v1", Kind: "Node"},
		Resource: "nodes", Singular: "node", StorePrefix: "/registry/minions/",
		New:     func() resource.Object { return &corev1.Node{} },
		NewList: func() runtime.Object { return &corev1.NodeList{} },
	}
)

func pod(ns, name, node string, labels ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.PodSpec{NodeName: node}}
	for i := 0; i+1 < len(labels); i += 2 {
		metav1.SetMetaDataLabel(&p.ObjectMeta, labels[i], labels[i+1])
	}
	return p
}

func key(o metav1.Object) string {
	if _, ok := o.(*corev1.Node); ok {
		return nodes.Key("", o.GetName())
	}
	return pods.Key(o.GetNamespace(), o.GetName())
}

type fixture struct {
	testing.TB
	ctx   context.Context
	store store.Store
	*Cache
}

func start(t testing.TB, s store.Store, cfg Config) *fixture {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	if s == nil {
		m := memory.New()
		t.Cleanup(m.Close)
		s = m
	}
	cfg.Store, cfg.Kinds, cfg.Log = s, []*resource.Kind{pods, nodes}, slog.New(slog.DiscardHandler)
	f := &fixture{TB: t, ctx: ctx, store: s, Cache: New(cfg)}
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-f.Ready():
	case <-ctx.Done():
		t.Fatal("cache is not ready")
	}
	return f
}

func (f *fixture) write(w store.Write) store.Revision {
	f.Helper()
	v, err := f.store.Commit(f.ctx, []store.Write{w})
	if err != nil || v[0].Err != nil {
		f.Fatalf("commit %s: %v %v", w.Key, err, v)
	}
	return v[0].Revision
}

func (f *fixture) put(o resource.Object) store.Revision {
	f.Helper()
	kind := "Pod"
	if _, ok := o.(*corev1.Node); ok {
		kind = "Node"
	}
	b, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: kind, Traceparent: "tp-" + o.GetName()}, o)
	if err != nil {
		f.Fatal(err)
	}
	return f.write(store.Write{Key: key(o), Value: b, Expect: store.Any})
}

func (f *fixture) delete(o metav1.Object) store.Revision {
	f.Helper()
	return f.write(store.Write{Key: key(o), Expect: store.Any})
}

func (f *fixture) fresh() store.Revision {
	f.Helper()
	rev, err := f.Fresh(f.ctx)
	if err != nil {
		f.Fatal(err)
	}
	return rev
}

func (f *fixture) watch(o WatchOptions) *Watcher {
	f.Helper()
	w, err := f.Kind(pods).Watch(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(w.Close)
	return w
}

// want reads as many events as expected and compares them.
func (f *fixture) want(w *Watcher, want ...string) {
	f.Helper()
	var got []string
	for len(got) < len(want) {
		events, err := w.Next(f.ctx)
		if err != nil {
			f.Fatalf("next: %v; had %v, want %v", err, got, want)
		}
		for _, ev := range events {
			got = append(got, describe(f, ev))
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		f.Fatalf("events\n got %v\nwant %v", got, want)
	}
}

func describe(t testing.TB, ev *Event) string {
	s := [...]string{"", "added", "modified", "deleted", "bookmark"}[ev.Type]
	if ev.Type == Bookmark {
		if ev.InitialEnd {
			s += "-end"
		}
		return s
	}
	it := ev.Item
	if rv := it.Object().GetResourceVersion(); rv != strconv.FormatInt(int64(ev.Revision), 10) || it.Revision != ev.Revision {
		t.Errorf("%s: resourceVersion %s, item %d, event %d", it.Key, rv, it.Revision, ev.Revision)
	}
	var raw metav1.PartialObjectMetadata
	if err := raw.Unmarshal(it.Raw); err != nil || raw.ResourceVersion != it.Object().GetResourceVersion() {
		t.Errorf("%s: raw resourceVersion %q, object %q", it.Key, raw.ResourceVersion, it.Object().GetResourceVersion())
	}
	return s + " " + it.Object().GetName()
}

func names(s Snapshot, prefix, after string) string {
	var out []string
	s.Ascend(prefix, after, func(it *Item) bool { out = append(out, it.Object().GetName()); return true })
	return strings.Join(out, " ")
}

func TestReadsAreConsistentAndSnapshotsDoNotChange(t *testing.T) {
	t.Run("memory", func(t *testing.T) { consistentReads(t, nil) })
	t.Run("etcd", func(t *testing.T) {
		e, err := etcd.Start(t.Context(), etcd.EmbeddedConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
		consistentReads(t, e)
	})
}

func consistentReads(t *testing.T, s1 store.Store) {
	f := start(t, s1, Config{})
	f.put(pod("a", "one", ""))
	f.put(pod("b", "two", ""))
	first := f.fresh()
	s := f.Kind(pods).Snapshot()
	if got := names(s, "/registry/pods/", ""); got != "one two" || s.Revision() != first {
		t.Fatalf("snapshot %q at %d, want revision %d", got, s.Revision(), first)
	}
	it, ok := f.Kind(pods).Get("/registry/pods/a/one")
	if !ok || it.Traceparent != "tp-one" || it.Object().GetResourceVersion() == "" {
		t.Fatalf("get: %+v", it)
	}
	f.put(pod("a", "three", ""))
	f.delete(pod("a", "one", ""))
	for i := range 200 {
		rev := f.put(pod("a", fmt.Sprintf("p%03d", i), ""))
		f.fresh()
		if now := f.Kind(pods).Snapshot(); now.Revision() != rev || now.Len() != 3+i {
			t.Fatalf("snapshot at %d has %d pods, want %d at %d", now.Revision(), now.Len(), 3+i, rev)
		}
	}
	if got := names(s, "/registry/pods/", ""); got != "one two" {
		t.Fatalf("old snapshot changed: %q", got)
	}
	// A write of another kind, or of a key outside the prefix, advances the snapshot too.
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	f.put(n)
	rev := f.write(store.Write{Key: "/other", Value: []byte("x")})
	if got := f.fresh(); got != rev || f.Kind(pods).Snapshot().Revision() != rev {
		t.Fatalf("fresh %d, snapshot %d, want %d", got, f.Kind(pods).Snapshot().Revision(), rev)
	}
	old, ok := f.Kind(pods).SnapshotAt(first)
	if !ok || names(old, "/registry/pods/", "") != "one two" || old.Revision() != first {
		t.Fatalf("snapshot at %d: %v %v", first, ok, names(old, "/registry/pods/", ""))
	}
	now := f.Kind(pods).Snapshot()
	if got := names(now, "/registry/pods/a/", "/registry/pods/a/p198"); got != "p199 three" {
		t.Fatalf("page: %q", got)
	}
	if got := now.Count("/registry/pods/a/", "/registry/pods/a/p198"); got != 2 {
		t.Fatalf("count: %d", got)
	}
	if _, ok := f.Kind(pods).SnapshotAt(rev + 1); ok {
		t.Fatal("snapshot of the future")
	}
}

func TestWatchTransitions(t *testing.T) {
	f := start(t, nil, Config{})
	f.put(pod("a", "old", "n1", "app", "x"))
	f.put(pod("b", "other", "", "app", "y"))
	after := f.fresh()
	all := f.watch(WatchOptions{Initial: true, InitialEnd: true})
	ns := f.watch(WatchOptions{Prefix: "/registry/pods/a/", Initial: true})
	one := f.watch(WatchOptions{Key: "/registry/pods/a/old", After: after})
	n1 := f.watch(WatchOptions{Field: "spec.nodeName", Value: "n1", Initial: true, InitialEnd: true})
	n2 := f.watch(WatchOptions{Field: "spec.nodeName", Value: "n2", After: after})
	x := f.watch(WatchOptions{After: after, Filter: func(it *Item) bool { return it.Object().GetLabels()["app"] == "x" }})

	f.put(pod("a", "old", "n2", "app", "y"))
	f.put(pod("b", "other", "n1", "app", "x"))
	f.put(pod("b", "other", "n1", "app", "x", "more", "y"))
	f.delete(pod("a", "old", ""))
	f.put(pod("c", "new", "n3"))
	f.delete(pod("b", "other", ""))

	f.want(all, "added old", "added other", "bookmark-end", "modified old", "modified other", "modified other", "deleted old", "added new", "deleted other")
	f.want(ns, "added old", "modified old", "deleted old")
	f.want(one, "modified old", "deleted old")
	f.want(n1, "added old", "bookmark-end", "deleted old", "added other", "modified other", "deleted other")
	f.want(n2, "added old", "deleted old")
	f.want(x, "deleted old", "added other", "modified other", "deleted other")
	// The history yields the same events.
	f.fresh()
	f.want(f.watch(WatchOptions{Field: "spec.nodeName", Value: "n1", After: after}), "deleted old", "added other", "modified other", "deleted other")
	f.want(f.watch(WatchOptions{Prefix: "/registry/pods/c/", After: after}), "added new")
}

func TestWatchFromAFutureRevisionSkipsEarlierEvents(t *testing.T) {
	f := start(t, nil, Config{})
	rev := f.fresh()
	w := f.watch(WatchOptions{After: rev + 2})
	for i := range 4 {
		f.put(pod("a", fmt.Sprint(i), ""))
	}
	f.want(w, "added 2", "added 3")
}

func TestHistoryIsBoundedAndOlderStartsExpire(t *testing.T) {
	f := start(t, nil, Config{HistoryEvents: 10})
	first := f.put(pod("a", "0", ""))
	var revs []store.Revision
	for i := range 30 {
		revs = append(revs, f.put(pod("a", fmt.Sprint(i), "")))
	}
	f.fresh()
	_, err := f.Kind(pods).Watch(WatchOptions{After: first})
	var expired *ExpiredError
	if !errors.As(err, &expired) || expired.Oldest != revs[19] {
		t.Fatalf("got %v, want expired with oldest %d", err, revs[19])
	}
	f.want(f.watch(WatchOptions{After: revs[27]}), "added 28", "added 29")
	f.want(f.watch(WatchOptions{After: revs[19]}), "added 20", "added 21", "added 22", "added 23", "added 24", "added 25", "added 26", "added 27", "added 28", "added 29")
	if _, ok := f.Kind(pods).SnapshotAt(first); ok {
		t.Fatal("got a snapshot from before the history")
	}
	if s, ok := f.Kind(pods).SnapshotAt(revs[19]); !ok || s.Len() != 20 {
		t.Fatalf("snapshot: %v, %d", ok, s.Len())
	}
}

// Old events are dropped, also those of a kind in which nothing changes any more, except for
// the last few.
func TestOldHistoryIsDropped(t *testing.T) {
	f := start(t, nil, Config{HistoryAge: 50 * time.Millisecond, HistoryMin: 3})
	first := f.put(pod("a", "0", ""))
	var revs []store.Revision
	for i := range 10 {
		revs = append(revs, f.put(pod("a", fmt.Sprint(i), "")))
	}
	f.fresh()
	var expired *ExpiredError
	for !errors.As(tryWatch(f, first), &expired) || expired.Oldest != revs[6] {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-f.ctx.Done():
			t.Fatalf("old history was kept: %v", expired)
		}
	}
	<-time.After(100 * time.Millisecond)
	f.want(f.watch(WatchOptions{After: revs[6]}), "added 7", "added 8", "added 9")
}

// tryWatch returns the error of Watch.
func tryWatch(f *fixture, after store.Revision) error {
	w, err := f.Kind(pods).Watch(WatchOptions{After: after})
	if err == nil {
		w.Close()
	}
	return err
}

func TestASlowWatcherIsCutOffAndCanResume(t *testing.T) {
	f := start(t, nil, Config{})
	after := f.fresh()
	slow := f.watch(WatchOptions{After: after, Buffer: 3})
	fast := f.watch(WatchOptions{After: after})
	for i := range 6 {
		f.put(pod("a", fmt.Sprint(i), ""))
	}
	f.fresh()
	f.want(fast, "added 0", "added 1", "added 2", "added 3", "added 4", "added 5")
	events, err := slow.Next(f.ctx)
	if err != nil || len(events) != 3 {
		t.Fatalf("got %d events, %v", len(events), err)
	}
	if _, err := slow.Next(f.ctx); !errors.Is(err, ErrSlow) {
		t.Fatalf("got %v, want ErrSlow", err)
	}
	f.want(f.watch(WatchOptions{After: events[2].Revision}), "added 3", "added 4", "added 5")
}

func TestBookmarksComeInOrder(t *testing.T) {
	f := start(t, nil, Config{BookmarkEvery: 5 * time.Millisecond})
	w := f.watch(WatchOptions{Initial: true, Bookmarks: true})
	f.put(pod("a", "one", ""))
	rev := f.write(store.Write{Key: "/other", Value: []byte("x")})
	var last store.Revision
	for last < rev {
		events, err := w.Next(f.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			if ev.Revision < last || (ev.Type != Bookmark && ev.Revision == last) {
				t.Fatalf("%v at %d after %d", describe(t, ev), ev.Revision, last)
			}
			last = ev.Revision
		}
	}
}

func TestFramesAreEncodedOnceForAll(t *testing.T) {
	f := start(t, nil, Config{})
	after := f.fresh()
	a, b := f.watch(WatchOptions{After: after}), f.watch(WatchOptions{After: after})
	f.put(pod("a", "one", ""))
	var calls atomic.Int32
	encode := func() ([]byte, error) { calls.Add(1); return []byte("x"), nil }
	for _, w := range []*Watcher{a, b} {
		events, err := w.Next(f.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if d, err := events[0].Frames.Get("grpc", encode); string(d) != "x" || err != nil {
				t.Fatal(d, err)
			}
		}
	}
	if calls.Load() != 1 {
		t.Fatalf("encoded %d times", calls.Load())
	}
	if _, err := (&Frames{}).Get("json", func() ([]byte, error) { return nil, errors.New("no") }); err == nil {
		t.Fatal("error lost")
	}
}

func TestUndecodableObjectsAreSkipped(t *testing.T) {
	f := start(t, nil, Config{})
	f.write(store.Write{Key: "/registry/pods/a/bad", Value: []byte("garbage")})
	f.write(store.Write{Key: "/registry/pods/a/json", Value: []byte(`{"metadata":{"name":"json","namespace":"a"},"spec":{"nodeName":"n"}}`)})
	f.put(pod("a", "good", ""))
	f.fresh()
	if got := names(f.Kind(pods).Snapshot(), "/registry/pods/", ""); got != "good json" {
		t.Fatalf("got %q", got)
	}
}

func TestWaitersEnd(t *testing.T) {
	f := start(t, nil, Config{})
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if err := f.WaitFor(ctx, f.fresh()+10); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
