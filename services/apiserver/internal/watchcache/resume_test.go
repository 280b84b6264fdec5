package watchcache_test

import (
	"log/slog"
	"testing"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/memory"
	. "keelson.dev/services/apiserver/internal/watchcache"
)

// TestStartingCacheResumesEarlierWatches resumes a watch after each event, at a cache that was
// started after all of them.
func TestStartingCacheResumesEarlierWatches(t *testing.T) {
	s, err := etcd.Start(t.Context(), etcd.EmbeddedConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	m := memory.New()
	t.Cleanup(m.Close)
	for name, s := range map[string]store.Store{"etcd": s, "memory": m} {
		t.Run(name, func(t *testing.T) { resume(t, s) })
	}
}

func resume(t *testing.T, s store.Store) {
	first := start(t, s, Config{})
	var revs []store.Revision
	var want []string
	add := func(rev store.Revision, event string) {
		revs, want = append(revs, rev), append(want, event)
	}
	before := first.put(pod("ns", "a", ""))
	for range 3 {
		add(first.put(pod("ns", "a", "n")), "modified a")
		add(first.put(pod("ns", "b", "n")), "added b")
		add(first.delete(pod("ns", "b", "")), "deleted b")
	}
	second := start(t, s, Config{})
	for i, after := range append([]store.Revision{before}, revs...) {
		w := second.watch(WatchOptions{After: after})
		second.want(w, want[i:]...)
		w.Close()
	}
	// A cache starts although its history was compacted, and refuses to resume from before.
	if err := s.Compact(t.Context(), revs[4]); err != nil {
		t.Fatal(err)
	}
	third := start(t, s, Config{})
	if err := tryWatch(third, revs[3]); err == nil {
		t.Error("a watch resumed from a compacted revision")
	}
	if got := names(third.Kind(pods).Snapshot(), "", ""); got != "a" {
		t.Errorf("state %q", got)
	}
}
