package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"

	"keelson.dev/services/apiserver/internal/store"
)

func watchFromNow(k *kit) {
	k.put("/w/old", "x")
	w := k.watch("/w/", 0)
	created := k.put("/w/a", "1")
	k.put("/v/other", "x")
	k.put("/w", "not inside")
	updated := k.put("/w/a", "2")
	deleted := k.del("/w/a")
	k.equal("events", k.events(w, 3), []store.Event{
		{Type: store.Put, Entry: store.Entry{Key: "/w/a", Value: []byte("1"), ModRevision: created, CreateRevision: created}},
		{Type: store.Put, Entry: store.Entry{Key: "/w/a", Value: []byte("2"), ModRevision: updated, CreateRevision: created}},
		{Type: store.Deleted, Entry: store.Entry{Key: "/w/a", ModRevision: deleted}},
	})
}

func watchResumes(k *kit) {
	start := k.revision()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 6 {
		var writes []store.Write
		for range 10 {
			w := store.Write{Key: fmt.Sprintf("/w/%d", rng.IntN(8)), Expect: store.Any}
			if rng.IntN(4) > 0 {
				w.Value = []byte(fmt.Sprint(rng.Uint32()))
			}
			writes = append(writes, w)
		}
		k.commit(writes...)
		k.put("/elsewhere", "x")
	}
	n := 0
	for after := k.revision(); after > start; after-- { // count the revisions
		if p := k.list("", store.ListOptions{Revision: after}); p.Revision == after {
			n++
		}
	}
	all := k.events(k.watch("", start), n)
	if all[0].Entry.ModRevision != start+1 || all[n-1].Entry.ModRevision != start+store.Revision(n) {
		k.Fatalf("events from %d to %d, want %d and %d more", all[0].Entry.ModRevision, all[n-1].Entry.ModRevision, start+1, n)
	}
	// All are opened first: etcd brings watches of the past up to date ten times a second.
	watches := make([]store.Watch, n)
	for i := range watches {
		watches[i] = k.watch("", start+store.Revision(i))
	}
	for i, w := range watches {
		k.equal(fmt.Sprintf("events after %d", start+store.Revision(i)), k.events(w, n-i), all[i:])
		w.Close()
	}
}

func watchProgress(k *kit) {
	w := k.watch("/w/", 0)
	for range 3 {
		k.put("/w/a", "x")
		rev := k.put("/elsewhere", "x")
		var at store.Revision
		for at < rev {
			// Progress reports nothing while the watch lags behind, so request it repeatedly.
			ctx, cancel := context.WithCancel(k.ctx)
			asked := make(chan struct{})
			go func() {
				defer close(asked)
				k.until("progress is reported", func() bool {
					if ctx.Err() == nil {
						_ = w.Progress(k.ctx)
					}
					return ctx.Err() != nil
				})
			}()
			b, err := w.Next(k.ctx)
			cancel()
			<-asked
			if err != nil {
				k.Fatal(err)
			}
			if b.Revision < at {
				k.Fatalf("batch of %d after one of %d", b.Revision, at)
			}
			at = b.Revision
		}
		if at != rev {
			k.Fatalf("progress to %d, want %d", at, rev)
		}
	}
}

func watchEnds(k *kit) {
	w := k.watch("/w/", 0)
	ctx, cancel := context.WithCancel(k.ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := w.Next(ctx)
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		k.Fatal(err)
	}
	// The end of Next's context does not end the watch.
	k.put("/w/a", "x")
	k.events(w, 1)
	go func() {
		_, err := w.Next(k.ctx)
		ended <- err
	}()
	w.Close()
	if err := <-ended; err == nil || k.ctx.Err() != nil {
		k.Fatalf("Next of a closed watch: %v", err)
	}
	w.Close()
}

func compaction(k *kit) {
	first := k.put("/a", "1")
	k.put("/gone", "1")
	k.del("/gone")
	k.put("/a", "2")
	at := k.put("/b", "1")
	k.put("/a", "3")
	last := k.put("/b", "2")
	if err := k.Compact(k.ctx, last+10); !errors.Is(err, store.ErrFutureRevision) {
		k.Fatalf("compact at a future revision: %v", err)
	}
	lagging := k.watch("/", at)
	if err := k.Compact(k.ctx, at); err != nil {
		k.Fatal(err)
	}
	if err := k.Compact(k.ctx, first); err != nil {
		k.Fatalf("compact again at an older revision: %v", err)
	}
	k.equal("state at the compacted revision", keys(k.list("/", store.ListOptions{Revision: at})), []string{"/a=2", "/b=1"})
	k.equal("state now", keys(k.list("/", store.ListOptions{})), []string{"/a=3", "/b=2"})
	if _, err := k.List(k.ctx, "/", store.ListOptions{Revision: at - 1}); !errors.Is(err, store.ErrCompacted) {
		k.Fatalf("list before the compacted revision: %v", err)
	}
	if got := k.events(lagging, 2); got[0].Entry.ModRevision != at+1 {
		k.Fatalf("events %+v", got)
	}
	k.events(k.watch("/", at), 2)
	w, err := k.Watch(k.ctx, "/", first)
	if err == nil {
		defer w.Close()
		_, err = w.Next(k.ctx)
	}
	var compacted *store.CompactedError
	if !errors.Is(err, store.ErrCompacted) || !errors.As(err, &compacted) || compacted.Oldest > at {
		k.Fatalf("watch from before the compacted revision: %v", err)
	}
}

// watchIsHistory runs writers, and watchers that are closed and resumed, and checks that each
// watcher sees exactly the acknowledged writes, and no other but those whose outcome is unknown.
func watchIsHistory(k *kit) {
	const writers, each, watchers, last = 4, 100, 3, "/w/last"
	start := k.revision()
	var mu sync.Mutex
	acked, unknown := map[store.Revision]string{}, map[string]bool{}
	write := func(key, value string) bool {
		for {
			v, err := k.Commit(k.ctx, []store.Write{{Key: key, Value: []byte(value), Expect: store.Any}})
			mu.Lock()
			switch {
			case err == nil && v[0].Err == nil:
				acked[v[0].Revision] = value
			case err == nil && errors.Is(v[0].Err, store.ErrUnknownOutcome) && k.ctx.Err() == nil:
				unknown[value] = true
				mu.Unlock()
				continue
			default:
				k.Errorf("commit: %v %+v", err, v)
			}
			mu.Unlock()
			return !k.Failed()
		}
	}
	var writing, watching sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			for j := 0; j < each && write(fmt.Sprintf("/w/%d", j%5), fmt.Sprintf("%d-%d", i, j)); j++ {
			}
		})
	}
	seen := make([]map[store.Revision]string, watchers)
	for i := range watchers {
		seen[i] = map[store.Revision]string{}
		watching.Go(func() {
			at, over := start, false
			for !over {
				w, err := k.Watch(k.ctx, "/w/", at)
				if err != nil {
					k.Error(err)
					return
				}
				for n := 0; n < 1+i*7 && !over; n++ { // close and resume it repeatedly
					b, err := w.Next(k.ctx)
					if err != nil {
						k.Errorf("next: %v", err)
						w.Close()
						return
					}
					for _, e := range b.Events {
						if e.Entry.ModRevision <= at {
							k.Errorf("event at %d after %d", e.Entry.ModRevision, at)
						}
						at = e.Entry.ModRevision
						if over = over || e.Entry.Key == last; !over {
							seen[i][at] = string(e.Entry.Value)
						}
					}
				}
				w.Close()
			}
		})
	}
	writing.Wait()
	write(last, last)
	watching.Wait()
	maps.DeleteFunc(acked, func(_ store.Revision, value string) bool { return value == last })
	for i := range watchers {
		for rev, value := range seen[i] {
			if _, ok := acked[rev]; !ok && unknown[value] {
				delete(seen[i], rev)
			}
		}
		k.equal(fmt.Sprintf("events of watcher %d", i), seen[i], acked)
	}
}
