package watchcache_test

import (
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	. "keelson.dev/services/apiserver/internal/watchcache"
)

// held returns how many pods of the cache are held decoded.
func (f *fixture) held() (n int) {
	f.Kind(pods).Snapshot().Ascend("", "", func(it *Item) bool {
		if it.Held() {
			n++
		}
		return true
	})
	return n
}

func TestFewObjectsAreHeldDecoded(t *testing.T) {
	const most, all = 4, 50
	f := start(t, nil, Config{Decoded: most})
	want := map[string]*corev1.Pod{}
	for i := range all {
		p := pod("default", fmt.Sprintf("p%02d", i), fmt.Sprint("n", i%3), "i", fmt.Sprint(i))
		p.ResourceVersion = fmt.Sprint(f.put(p))
		want[key(p)] = p
	}
	f.fresh()
	if n := f.held(); n != most {
		t.Errorf("%d objects are held decoded after writes, want %d", n, most)
	}
	// Readers and writers at the same time: everybody gets whole objects.
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 10 {
				f.Kind(pods).Snapshot().Ascend("", "", func(it *Item) bool {
					if got := it.Object(); !apiequality.Semantic.DeepEqual(got, want[it.Key]) {
						t.Errorf("%s: got %v, want %v", it.Key, got, want[it.Key])
					}
					return true
				})
			}
		})
	}
	for range 200 {
		f.put(&corev1.Node{})
	}
	group.Wait()
	if n := f.held(); n > most {
		t.Errorf("%d objects are held decoded after reads, want at most %d", n, most)
	}
}

// The previous state of an object whose filters decide what a watcher sees may not be decoded
// any more.
func TestWatchersSeeWhatLeftTheirFilter(t *testing.T) {
	f := start(t, nil, Config{Decoded: 1})
	p := pod("default", "moved", "a", "app", "web")
	f.put(p)
	on := f.watch(WatchOptions{After: f.put(pod("default", "other", "a")), Field: "spec.nodeName", Value: "a"})
	q := pod("default", "moved", "b", "app", "web")
	f.put(q)
	f.want(on, "deleted moved")
	f.delete(pod("default", "other", "a"))
	f.want(on, "deleted other")
}
