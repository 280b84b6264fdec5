package clientconformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
)

// recorder records what a cache delivers to its subscribers, and checks that each event
// follows from those before it.
type recorder struct {
	t      *testing.T
	prefix string
	mu     sync.Mutex
	lines  []string
	now    map[string]*corev1.ConfigMap
}

func (r *recorder) event(ev client.Event[*corev1.ConfigMap]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.now[ev.Object.Name]
	switch {
	case ev.Old != old:
		r.t.Errorf("%s: Old is not the object of the previous event", describe(ev))
	case ev.Type == client.Added && old != nil, ev.Type != client.Added && old == nil:
		r.t.Errorf("%s: does not follow from the events before it", describe(ev))
	case ev.Type == client.Modified && ev.Object.ResourceVersion == old.ResourceVersion:
		r.t.Errorf("%s: repeated", describe(ev))
	}
	if ev.Type == client.Deleted {
		delete(r.now, ev.Object.Name)
	} else {
		r.now[ev.Object.Name] = ev.Object
	}
	r.lines = append(r.lines, strings.ReplaceAll(describe(ev), r.prefix, ""))
}

func (r *recorder) events() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// cache starts a cache on a client, with a recorder.
func (s *suite) cache(t *testing.T, c *client.Client) (*client.Cache[*corev1.ConfigMap], *recorder) {
	t.Helper()
	cache := client.NewCache(c, client.CacheOptions[*corev1.ConfigMap]{
		Namespace: s.Namespace, LabelSelector: s.selector(),
		Indexes: map[string]func(*corev1.ConfigMap) []string{
			"v": func(cm *corev1.ConfigMap) []string { return []string{cm.Data["v"]} },
		},
	})
	rec := &recorder{t: t, prefix: s.prefix, now: map[string]*corev1.ConfigMap{}}
	cache.Subscribe(rec.event)
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() { done <- cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return cache, rec
}

func testCache(t *testing.T, s *suite) {
	s.create(t, "before", "v", "0")
	cache, rec := s.cache(t, s.Client)
	<-cache.Synced()
	equalSlices(t, "events at sync", rec.events(), []string{"Added before 0"})
	_, want := s.history(t)
	want = append([]string{"Added before 0"}, want...)
	eventually(t, "all events", func() bool { return len(rec.events()) >= len(want) })
	equalSlices(t, "events", rec.events(), want)
	equal(t, "objects", cache.Len(), 3)
	if got := cache.ByIndex("v", "again"); len(got) != 1 || got[0].Name != s.prefix+"a" {
		t.Errorf("index: %v", got)
	}
	equal(t, "objects under a value that has gone", len(cache.ByIndex("v", "3")), 0)
	if _, ok := cache.Get(s.Namespace, s.prefix+"none"); ok {
		t.Error("found what does not exist")
	}

	late := &recorder{t: t, now: map[string]*corev1.ConfigMap{}}
	unsubscribe := cache.Subscribe(late.event)
	equal(t, "events of a late subscriber", len(late.events()), 3)
	unsubscribe()
	s.create(t, "unheard", "v", "0")
	eventually(t, "the next event", func() bool { return len(rec.events()) == len(want)+1 })
	equal(t, "events of a subscriber that has left", len(late.events()), 3)
}

// testCacheCut writes while the cache's connection is cut repeatedly: every event arrives
// once and in order.
func testCacheCut(t *testing.T, s *suite) {
	p := startProxy(t, s.Endpoint)
	cache, rec := s.cache(t, s.Dial(t, p.address()))
	<-cache.Synced()
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same history each time.
	var want []string
	live := map[string]*corev1.ConfigMap{}
	for i := range 150 {
		if i%10 == 5 {
			p.cut()
		}
		name, v := fmt.Sprintf("n%d", rng.IntN(5)), fmt.Sprint(i)
		switch cm := live[name]; {
		case cm == nil:
			live[name] = s.create(t, name, "v", v)
			want = append(want, fmt.Sprintf("Added %s %s", name, v))
		case rng.IntN(3) == 0:
			if err := s.maps.Delete(s.ctx, s.Namespace, cm.Name); err != nil {
				t.Fatal(err)
			}
			delete(live, name)
			want = append(want, fmt.Sprintf("Deleted %s %s", name, cm.Data["v"]))
		default:
			live[name] = s.set(t, cm, "v", v)
			want = append(want, fmt.Sprintf("Modified %s %s", name, v))
		}
	}
	eventually(t, "all events", func() bool { return len(rec.events()) >= len(want) })
	equalSlices(t, "events", rec.events(), want)
	equal(t, "objects", cache.Len(), len(live))
	if p.cuts() == 0 {
		t.Error("the proxy cut nothing")
	}
}

// testCacheExpired compacts the history during a cut: the cache reports the difference.
func testCacheExpired(t *testing.T, s *suite) {
	if s.Compact == nil {
		return // this server's history is not ours to end.
	}
	p := startProxy(t, s.Endpoint)
	kept := s.create(t, "kept", "v", "0")
	changed := s.create(t, "changed", "v", "0")
	gone := s.create(t, "gone", "v", "0")
	replaced := s.create(t, "replaced", "v", "0")
	cache, rec := s.cache(t, s.Dial(t, p.address()))
	<-cache.Synced()
	before := len(rec.events())
	equal(t, "events at sync", before, 4)

	p.pause()
	s.set(t, changed, "v", "1")
	for _, cm := range []*corev1.ConfigMap{gone, replaced} {
		if err := s.maps.Delete(s.ctx, s.Namespace, cm.Name); err != nil {
			t.Fatal(err)
		}
	}
	s.create(t, "new", "v", "1")
	s.create(t, "replaced", "v", "1")
	s.Compact()
	p.resume()

	want := []string{"Added new 1", "Added replaced 1", "Deleted gone 0", "Deleted replaced 0", "Modified changed 1"}
	eventually(t, "the difference", func() bool { return len(rec.events()) >= before+len(want) })
	got := rec.events()[before:]
	if d, a := slices.Index(got, "Deleted replaced 0"), slices.Index(got, "Added replaced 1"); d > a {
		t.Errorf("an object was added before the one of its name was deleted: %v", got)
	}
	slices.Sort(got)
	equalSlices(t, "difference", got, want)
	s.set(t, kept, "v", "2")
	eventually(t, "an event after the difference", func() bool {
		events := rec.events()
		return events[len(events)-1] == "Modified kept 2"
	})
}
