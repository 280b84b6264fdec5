package clientconformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
)

func testWithoutManagedFields(t *testing.T, s *suite) {
	cm := s.create(t, "a", "k", "1")
	maps := s.maps.WithoutManagedFields()
	got := must(maps.Get(s.ctx, s.Namespace, cm.Name))(t)
	equal(t, "uid", got.UID, cm.UID)
	equal(t, "data", got.Data["k"], "1")
	equal(t, "managed fields", len(got.ManagedFields), 0)
	items, _, err := maps.List(s.ctx, client.ListOptions{Namespace: s.Namespace, LabelSelector: s.selector()})
	if err != nil || len(items) != 1 || len(items[0].ManagedFields) != 0 {
		t.Errorf("list: %v %v", items, err)
	}
}

// testRepeat repeats writes with request ids.
func testRepeat(t *testing.T, s *suite) {
	named := s.configMap("a", "v", "1")
	made := must(s.maps.Create(s.ctx, named, client.RequestID("one")))(t)
	again := must(s.maps.Create(s.ctx, named, client.RequestID("one")))(t)
	equal(t, "uid", again.UID, made.UID)
	_, err := s.maps.Create(s.ctx, named, client.RequestID("two"))
	wants(t, "another request", apierrors.IsAlreadyExists, err)

	nameless := s.configMap("")
	nameless.Name, nameless.GenerateName = "", s.prefix+"g-"
	first := must(s.maps.Create(s.ctx, nameless, client.RequestID("three")))(t)
	same := must(s.maps.Create(s.ctx, nameless, client.RequestID("three")))(t)
	other := must(s.maps.Create(s.ctx, nameless, client.RequestID("four")))(t)
	if first.Name != same.Name || first.UID != same.UID || other.Name == first.Name {
		t.Errorf("generated names: %s, repeated %s, another %s", first.Name, same.Name, other.Name)
	}

	made.Data["v"] = "2"
	updated := must(s.maps.Update(s.ctx, made, client.RequestID("five")))(t)
	repeated := must(s.maps.Update(s.ctx, made, client.RequestID("five")))(t)
	equal(t, "resourceVersion", repeated.ResourceVersion, updated.ResourceVersion)
	_, err = s.maps.Update(s.ctx, made, client.RequestID("six"))
	wants(t, "another request", apierrors.IsConflict, err)

	for range 2 {
		if err := s.maps.Delete(s.ctx, s.Namespace, made.Name, client.UID(made.UID), client.DeleteRequestID("seven")); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	wants(t, "a delete without uid", apierrors.IsBadRequest, s.maps.Delete(s.ctx, s.Namespace, first.Name, client.DeleteRequestID("eight")))
}

// testWatches follows objects by many watches of one stream, some of which are not read.
func testWatches(t *testing.T, s *suite) {
	watches := client.NewWatches(s.Client)
	defer watches.Close()
	maps := s.maps.Over(watches)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	const objects, changes = 20, 200
	blocked := make(chan struct{})
	var wait sync.WaitGroup
	defer wait.Wait()
	defer close(blocked)
	wait.Go(func() { // a reader that stops after its first event holds up no other
		for range maps.Watch(ctx, client.WatchOptions{Namespace: s.Namespace, LabelSelector: s.selector()}) {
			<-blocked
			return
		}
	})
	var seen sync.WaitGroup
	for i := range objects {
		name := fmt.Sprint("w", i)
		seen.Go(func() {
			want := changes
			if i > 0 {
				want = 1
			}
			for ev, err := range maps.Watch(ctx, client.WatchOptions{Namespace: s.Namespace, Name: s.prefix + name}) {
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				if ev.Object.Data["v"] == fmt.Sprint(want) {
					return
				}
			}
			t.Errorf("%s: the watch ended", name)
		})
	}
	for i := range objects {
		s.create(t, fmt.Sprint("w", i), "v", "1")
	}
	cm := must(s.maps.Get(s.ctx, s.Namespace, s.prefix+"w0"))(t)
	for i := 2; i <= changes; i++ { // more than the window of a watch
		cm = s.set(t, cm, "v", fmt.Sprint(i))
	}
	seen.Wait()
	for _, err := range maps.Watch(ctx, client.WatchOptions{Namespace: s.Namespace, LabelSelector: "((("}) {
		wants(t, "a watch that is refused", apierrors.IsBadRequest, err)
	}
	watches.Close()
	for _, err := range maps.Watch(ctx, client.WatchOptions{Namespace: s.Namespace}) {
		if err == nil {
			t.Error("a watch after Close")
		}
	}
}

// testWatchesCut checks that caches over one stream, and a Follow, lose and repeat nothing when the
// connection breaks.
func testWatchesCut(t *testing.T, s *suite) {
	p := startProxy(t, s.Endpoint)
	watches := client.NewWatches(s.Dial(t, p.address()))
	defer watches.Close()
	ctx, cancel := context.WithCancel(s.ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	const caches, changes = 3, 30
	var mu sync.Mutex
	seen := make([][]string, caches+1)
	note := func(i int, ev client.Event[*corev1.ConfigMap]) {
		mu.Lock()
		defer mu.Unlock()
		seen[i] = append(seen[i], ev.Object.Data["v"])
	}
	cm := s.create(t, "a", "v", "0")
	maps := s.maps.Over(watches)
	for i := range caches {
		cache := client.NewCacheOf(maps, client.CacheOptions[*corev1.ConfigMap]{Namespace: s.Namespace, LabelSelector: s.selector()})
		cache.Subscribe(func(ev client.Event[*corev1.ConfigMap]) { note(i, ev) })
		wait.Go(func() {
			if err := cache.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		select {
		case <-cache.Synced():
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		}
	}
	wait.Go(func() {
		for ev, err := range maps.Follow(ctx, client.WatchOptions{Namespace: s.Namespace, LabelSelector: s.selector(), ResourceVersion: cm.ResourceVersion}) {
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			} else if err == nil && ev.Type != client.Bookmark {
				note(caches, ev)
			}
		}
	})
	var want []string
	for i := 1; i <= changes; i++ {
		if i%7 == 0 {
			p.cut()
		}
		cm = s.set(t, cm, "v", fmt.Sprint(i))
		want = append(want, fmt.Sprint(i))
	}
	eventually(t, "all changes arrive", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for i := range seen {
			if len(seen[i]) == 0 || seen[i][len(seen[i])-1] != fmt.Sprint(changes) {
				return false
			}
		}
		return true
	})
	mu.Lock()
	defer mu.Unlock()
	for i := range caches {
		equalSlices(t, "a cache", seen[i], append([]string{"0"}, want...))
	}
	equalSlices(t, "follow", seen[caches], want)
}
