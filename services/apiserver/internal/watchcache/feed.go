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

// Run feeds the cache until ctx ends; it then returns nil, after all watchers
// have been ended. While the store fails, readers keep the last state and Run
// tries again.
func (c *Cache) Run(ctx context.Context) error {
	defer c.stop()
	const least, most = 20 * time.Millisecond, 2 * time.Second
	wait := least
	var at store.Revision // 0: load
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
			c.cfg.Log.Warn("watch cache must load its state anew", "error", err, "revision", int64(at))
			at = 0
		case errors.Is(err, store.ErrUnavailable):
			if c.behind.Load() == nil {
				c.cfg.Log.Warn("watch cache is cut off from its store", "error", err, "revision", int64(at))
			}
			c.fallBehind(err)
			wait = min(wait, refusedWait)
		default:
			c.cfg.Log.Warn("watch cache lost its watch of the store", "error", err, "revision", int64(at))
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

// refusedWait is the longest time between two tries while the store refuses, which
// costs nothing.
const refusedWait = 200 * time.Millisecond

// fallBehind ends the watchers that want to be kept up: what they would be told comes
// from nobody now, here.
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

// feed loads a state if at is 0, and follows the store from there.
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
			c.event(&b.Events[i])
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

// ask requests the watch's progress while somebody waits for a revision, one
// request for all who wait, and whenever bookmarks are due. It also lets what has
// grown old of the kinds go in which nothing happens any more.
func (c *Cache) ask(ctx context.Context, w store.Watch) {
	const again = 20 * time.Millisecond
	bookmarks := time.NewTicker(c.cfg.BookmarkEvery)
	defer bookmarks.Stop()
	aging := time.NewTicker(c.cfg.HistoryAge/8 + 1)
	defer aging.Stop()
	if c.waiting() { // since before this watch
		c.poke()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-bookmarks.C:
			_ = w.Progress(ctx) // Next returns what ails the watch
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

func (c *Cache) event(e *store.Event) {
	kc := c.byKey(e.Entry.Key)
	if kc == nil {
		return
	}
	var item *Item
	if e.Type == store.Put {
		var err error
		if item, err = c.decode(kc.kind, e.Entry); err != nil {
			// What cannot be read is not there; better than a state that stands still.
			c.cfg.Log.Error("stored object cannot be read", "error", err, "key", e.Entry.Key)
		}
	}
	kc.apply(e.Entry.ModRevision, e.Entry.Key, item)
}

// decode makes an item of an event's entry; what this process wrote itself is there
// already.
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

// age lets the changes go that are too old to be kept.
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

// resumable is how many of the store's last revisions a cache that starts goes back,
// so that watches can be resumed here that another apiserver served, or this one before
// it was started anew.
const resumable = 5000

// load reads all kinds as they were a while ago, as far back as the store knows and
// resuming needs it, and says from when they are and which revision was the newest then.
// What has happened since comes as events.
func (c *Cache) load(ctx context.Context) (rev, newest store.Revision, err error) {
	if newest, err = c.cfg.Store.Revision(ctx); err != nil {
		return 0, 0, err
	}
	back := store.Revision(min(resumable, c.cfg.HistoryEvents))
	for {
		// Never before what readers have seen already.
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

// loadAt reads all kinds at one revision (0: the newest) and puts them in the place of
// what was there; until then readers see the old state.
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
					c.cfg.Log.Error("stored object cannot be read", "error", err, "key", e.Key)
					continue
				}
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

// replace puts a loaded state in the place of the present one. Watchers cannot
// be told what happened between, so those there are end and resume or list again.
func (kc *KindCache) replace(items *tree, rev store.Revision) {
	kc.mu.Lock()
	kc.items, kc.shared, kc.rev = items, nil, rev
	kc.history.reset(rev)
	kc.mu.Unlock()
	kc.watchers.endAll(ErrReloaded, false)
}
