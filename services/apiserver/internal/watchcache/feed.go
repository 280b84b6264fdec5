package watchcache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Run feeds the cache until ctx ends, then ends all watchers and returns nil. While the store
// fails, readers keep the last state and Run retries. It returns an error if the store is
// closed.
func (c *Cache) Run(ctx context.Context) error {
	defer c.stop()
	const least, most = 20 * time.Millisecond, 2 * time.Second
	wait := least
	var at store.Revision // 0: load the state
	for ctx.Err() == nil {
		began := time.Now()
		err := c.feed(ctx, &at)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, store.ErrClosed) {
			return fmt.Errorf("watch cache: %w", err)
		}
		switch {
		case errors.Is(err, store.ErrCompacted):
			c.cfg.Log.WarnContext(ctx, "the watch cache must reload its state", "error", err, "revision", int64(at))
			at = 0
		case errors.Is(err, store.ErrUnavailable):
			if c.behind.Load() == nil {
				c.cfg.Log.WarnContext(ctx, "the watch cache cannot reach its store", "error", err, "revision", int64(at))
			}
			c.fallBehind(err)
			wait = min(wait, refusedWait)
		default:
			c.cfg.Log.WarnContext(ctx, "the watch cache lost its watch of the store", "error", err, "revision", int64(at))
		}
		if time.Since(began) > 10*time.Second {
			wait = least
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, most)
	}
	return nil
}

// refusedWait is the longest pause between attempts while the store is unavailable. Such
// attempts fail at once and cost nothing.
const refusedWait = 200 * time.Millisecond

// fallBehind ends the watchers with WatchOptions.Current: no events arrive here at present.
func (c *Cache) fallBehind(err error) {
	c.behind.Store(&err)
	for _, kc := range c.kinds {
		kc.watchers.endCurrent(err)
	}
}

func (c *Cache) stop() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	close(c.stopping)
	for _, kc := range c.kinds {
		kc.watchers.endAll(ErrStopped, true)
	}
}

// feed loads the state if at is 0, and follows the store from there.
func (c *Cache) feed(ctx context.Context, at *store.Revision) error {
	if *at == 0 {
		rev, newest, err := c.load(ctx)
		if err != nil {
			return err
		}
		*at, c.newest = rev, newest
		c.reached(rev)
	}
	ctx, cancel := context.WithCancel(ctx)
	var readiness sync.WaitGroup
	defer readiness.Wait()
	defer cancel()
	readiness.Go(func() {
		if c.WaitFor(ctx, c.newest) == nil {
			c.once.Do(func() { close(c.ready) })
		}
	})
	w, err := c.cfg.Store.Watch(ctx, c.cfg.Prefix, *at)
	if err != nil {
		return err
	}
	defer w.Close()
	c.behind.Store(nil)
	asking := make(chan struct{})
	go func() {
		defer close(asking)
		c.ask(ctx, w)
	}()
	defer func() { cancel(); <-asking }()
	bookmarked := time.Now()
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for i := range b.Events {
			c.event(ctx, &b.Events[i])
		}
		if b.Revision > *at {
			*at = b.Revision
		}
		c.reached(*at)
		if time.Since(bookmarked) >= c.cfg.BookmarkEvery {
			bookmarked = time.Now()
			c.bookmark(*at)
		}
	}
}

// ask requests the watch's progress while readers wait for a revision (one request for all of
// them) and whenever bookmarks are due. It also drops old history of kinds in which nothing
// changes any more.
func (c *Cache) ask(ctx context.Context, w store.Watch) {
	const again = 20 * time.Millisecond
	bookmarks := time.NewTicker(c.cfg.BookmarkEvery)
	defer bookmarks.Stop()
	aging := time.NewTicker(c.cfg.HistoryAge/8 + 1)
	defer aging.Stop()
	if c.waiting() { // they have been waiting since before this watch
		c.poke()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-bookmarks.C:
			_ = w.Progress(ctx) // Next returns the watch's error
		case now := <-aging.C:
			for _, kc := range c.kinds {
				kc.age(now)
			}
		case <-c.wake:
			for c.waiting() {
				if w.Progress(ctx) != nil {
					return
				}
				select {
				case <-ctx.Done():
					return
				case <-c.wake:
				case <-time.After(again):
				}
			}
		}
	}
}

// event applies one event of the store.
func (c *Cache) event(ctx context.Context, e *store.Event) {
	kc := c.byKey(e.Entry.Key)
	if kc == nil {
		return
	}
	var item *Item
	if e.Type == store.Put {
		var err error
		if item, err = c.decode(kc.kind, e.Entry); err != nil {
			// Leave an undecodable object out rather than stop following the store.
			c.cfg.Log.ErrorContext(ctx, "cannot decode a stored object", "error", err, "key", e.Entry.Key)
		}
	}
	kc.apply(e.Entry.ModRevision, e.Entry.Key, item)
}

// decode returns the item of an event's entry. Objects that this process wrote are not decoded
// again.
func (c *Cache) decode(kind *resource.Kind, e store.Entry) (*Item, error) {
	v, err := envelope.Decode(e.Value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Key, err)
	}
	if w := c.expected.take(v.WriteID); w != nil && w.Key == e.Key && w.Kind == kind {
		return w.At(e.ModRevision)
	}
	return decode(kind, e, v)
}

// age drops changes that are older than HistoryAge.
func (kc *KindCache) age(now time.Time) {
	kc.mu.Lock()
	defer kc.mu.Unlock()
	kc.history.trim(now)
}

func (c *Cache) bookmark(rev store.Revision) {
	for _, kc := range c.kinds {
		kc.watchers.bookmark(rev)
	}
}

// resumable is how many of the store's last revisions a starting cache goes back, so that
// watches can resume here that were served by another apiserver, or by this one before it was
// restarted.
const resumable = 5000

// load loads all kinds as they were at an earlier revision, as far back as the store allows and
// resuming needs it. It returns that revision, and the one that was the store's newest. The
// events since then arrive through the watch.
func (c *Cache) load(ctx context.Context) (rev, newest store.Revision, err error) {
	if newest, err = c.cfg.Store.Revision(ctx); err != nil {
		return 0, 0, err
	}
	back := store.Revision(min(resumable, c.cfg.HistoryEvents))
	for {
		// Never go back behind what readers have already seen.
		from := max(newest-back, c.Revision(), 1)
		if back == 0 || from >= newest {
			from = 0
		}
		rev, err = c.loadAt(ctx, from)
		if from == 0 || !errors.Is(err, store.ErrCompacted) {
			return rev, max(rev, newest), err
		}
		var compacted *store.CompactedError
		if errors.As(err, &compacted) && compacted.Oldest < newest && newest-compacted.Oldest < back {
			back = newest - compacted.Oldest
		} else {
			back /= 8
		}
	}
}

// loadAt loads all kinds at one revision (0: the newest) and replaces the current state. Until
// it returns, readers see the old state.
func (c *Cache) loadAt(ctx context.Context, rev store.Revision) (store.Revision, error) {
	loaded := make([]*tree, len(c.kinds))
	for i, kc := range c.kinds {
		items := newTree()
		after := ""
		for {
			page, err := c.cfg.Store.List(ctx, kc.kind.StorePrefix, store.ListOptions{After: after, Limit: c.cfg.PageSize, Revision: rev})
			if err != nil {
				return 0, fmt.Errorf("list %s: %w", kc.kind.StorePrefix, err)
			}
			rev = page.Revision
			for _, e := range page.Entries {
				it, err := Decode(kc.kind, e)
				if err != nil {
					c.cfg.Log.ErrorContext(ctx, "cannot decode a stored object", "error", err, "key", e.Key)
					continue
				}
				kc.recent.hold(it)
				items.ReplaceOrInsert(it)
			}
			if !page.More || len(page.Entries) == 0 {
				break
			}
			after = page.Entries[len(page.Entries)-1].Key
		}
		loaded[i] = items
	}
	for i, kc := range c.kinds {
		kc.replace(loaded[i], rev)
	}
	return rev, nil
}

// replace replaces the state by a loaded one. The events between the two are unknown, so all
// watchers are ended, and must resume or list again.
func (kc *KindCache) replace(items *tree, rev store.Revision) {
	kc.mu.Lock()
	kc.items, kc.shared, kc.rev = items, nil, rev
	kc.history.reset(rev)
	kc.mu.Unlock()
	kc.watchers.endAll(ErrReloaded, false)
}
