package watchcache

import (
	"context"
	"strings"
	"sync"

	"keelson.dev/services/apiserver/internal/store"
)

// WatchOptions configures a watch.
type WatchOptions struct {
	// Prefix restricts the watch to keys with this prefix: Kind.Prefix(namespace). Empty means
	// the whole kind.
	Prefix string
	// Key restricts the watch to one object: Kind.Key(namespace, name).
	Key string
	// Field and Value restrict the watch to objects whose field (one of Kind.Fields) has this
	// value. Watchers are indexed by it, so that only those concerned pay for an event: put the
	// most selective requirement of a field selector here.
	Field, Value string
	// Filter, if set, restricts the watch to objects for which it returns true. It must be pure
	// and fast: it is called for each state, and delays others while it runs.
	Filter func(*Item) bool
	// After is the revision after which the watch starts: later events are delivered first. It
	// is ignored if Initial is set.
	After store.Revision
	// Initial delivers the current state first, as Added events.
	Initial bool
	// InitialEnd delivers a bookmark after the initial state.
	InitialEnd bool
	// Bookmarks delivers bookmarks every Config.BookmarkEvery.
	Bookmarks bool
	// Current ends or refuses the watch with store.ErrUnavailable while the store cannot reach
	// enough of its members, because another apiserver may still receive events.
	Current bool
	// Buffer overrides Config.Buffer if it is positive.
	Buffer int
	// Ready, if set, is called when events or the end of the watch wait for Poll, which then
	// takes the place of Next. It is called while locks are held: it must not block, nor call
	// the watcher. It is not called for the initial state and the backlog.
	Ready func()
}

// Watcher delivers the events of one watch. It may be used by one goroutine at a time, except
// that Close may be called by any.
type Watcher struct {
	kc     *KindCache
	opts   WatchOptions
	buffer int
	filter func(*Item) bool // Filter and the other restrictions

	// backlog and initial are from before the watch was registered. Next delivers them first.
	backlog    []*change
	initial    []*Item
	initialEnd bool
	// start is the revision up to which they go. Later changes arrive through dispatch.
	start store.Revision

	mu     sync.Mutex
	queue  []*Event
	err    error         // ends the watch after the queue
	signal chan struct{} // buffered; nil if opts.Ready is set
}

// Watch starts a watch. It fails with *ExpiredError if the events after WatchOptions.After are
// not known any more. If After is a revision that the cache has not reached, the watch delivers
// what comes after it; to refuse future revisions, call Cache.WaitFor first.
func (kc *KindCache) Watch(o WatchOptions) (*Watcher, error) {
	w := &Watcher{kc: kc, opts: o, buffer: o.Buffer}
	if o.Ready == nil {
		w.signal = make(chan struct{}, 1)
	}
	if w.buffer <= 0 {
		w.buffer = kc.cache.cfg.Buffer
	}
	w.filter = kc.filter(o)
	ws := &kc.watchers
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.stopped {
		return nil, ErrStopped
	}
	if behind := kc.cache.behind.Load(); o.Current && behind != nil {
		return nil, *behind
	}
	if err := w.begin(); err != nil {
		return nil, err
	}
	ws.add(w)
	return w, nil
}

// begin takes the initial state or the backlog.
func (w *Watcher) begin() error {
	kc, o := w.kc, w.opts
	rev := kc.cache.Revision() // read before locking: the state is at least as new
	kc.mu.RLock()
	defer kc.mu.RUnlock()
	w.start = max(rev, kc.rev)
	switch {
	case o.Initial:
		w.initialEnd = o.InitialEnd
		w.initial = kc.collect(o)
	case o.After < kc.history.oldest:
		return &ExpiredError{Asked: o.After, Oldest: kc.history.oldest}
	default:
		w.start = max(w.start, o.After)
		w.backlog = append(w.backlog, kc.history.after(o.After)...)
	}
	return nil
}

// collect returns the current objects within the prefix or key of a watch. The filter is
// applied later, outside the lock.
func (kc *KindCache) collect(o WatchOptions) []*Item {
	if o.Key != "" {
		if it, ok := kc.items.Get(&Item{Key: o.Key}); ok {
			return []*Item{it}
		}
		return nil
	}
	var items []*Item
	if o.Prefix == "" || o.Prefix == kc.kind.StorePrefix {
		items = make([]*Item, 0, kc.items.Len())
	}
	(Snapshot{items: kc.items}).Ascend(o.Prefix, "", func(it *Item) bool {
		items = append(items, it)
		return true
	})
	return items
}

// filter combines the restrictions of a watch. It returns nil if there are none.
func (kc *KindCache) filter(o WatchOptions) func(*Item) bool {
	field := kc.kind.Fields[o.Field]
	if o.Key == "" && (o.Prefix == "" || o.Prefix == kc.kind.StorePrefix) && field == nil {
		return o.Filter
	}
	return func(it *Item) bool {
		return (o.Key == "" || it.Key == o.Key) &&
			strings.HasPrefix(it.Key, o.Prefix) &&
			(field == nil || field(it.Object()) == o.Value) &&
			(o.Filter == nil || o.Filter(it))
	}
}

// Next waits for events and returns at least one. It fails with ErrSlow, ErrStopped,
// ErrReloaded or store.ErrUnavailable (after the events queued before), or with ctx's error.
func (w *Watcher) Next(ctx context.Context) ([]*Event, error) {
	if events := w.first(chunk); len(events) > 0 {
		return events, nil
	}
	for {
		w.mu.Lock()
		events, err := w.queue, w.err
		w.queue = nil
		w.mu.Unlock()
		if len(events) > 0 {
			return events, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-w.signal:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Poll returns up to n of the waiting events. If it returns fewer, none is left, and Ready will be
// called for the next. Its error is the end of the watch, as in Next, after these events.
func (w *Watcher) Poll(n int) ([]*Event, error) {
	events := w.first(n)
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := min(n-len(events), len(w.queue)); k > 0 {
		if len(events) == 0 {
			events = w.queue[:k:k]
		} else {
			events = append(events, w.queue[:k]...)
		}
		w.queue = w.queue[k:]
	}
	if len(w.queue) > 0 || len(w.initial) > 0 || len(w.backlog) > 0 || w.initialEnd {
		return events, nil
	}
	w.queue = nil
	return events, w.err
}

// chunk bounds how many events of the initial state and the backlog one Next returns.
const chunk = 500

// first returns up to n of the next events of the initial state and the backlog.
func (w *Watcher) first(n int) []*Event {
	var events []*Event
	for len(w.initial) > 0 && len(events) < n {
		it := w.initial[0]
		w.initial = w.initial[1:]
		if w.filter == nil || w.filter(it) {
			events = append(events, &Event{Type: Added, Item: it, Revision: it.Revision, Frames: &Frames{}})
		}
	}
	for len(w.backlog) > 0 && len(events) < n {
		c := w.backlog[0]
		w.backlog = w.backlog[1:]
		if ev := c.event(w.filter); ev != nil {
			events = append(events, ev)
		}
	}
	if w.initialEnd && len(w.initial) == 0 && len(w.backlog) == 0 && len(events) < n {
		w.initialEnd = false
		events = append(events, &Event{Type: Bookmark, Revision: w.start, InitialEnd: true})
	}
	return events
}

// Close ends the watch. A waiting Next returns ErrStopped.
func (w *Watcher) Close() {
	ws := &w.kc.watchers
	ws.mu.Lock()
	ws.remove(w)
	ws.mu.Unlock()
	w.end(ErrStopped)
}

// push queues an event. It returns false if the watcher has ended, or ends with ErrSlow because
// its queue is full.
func (w *Watcher) push(ev *Event) (alive bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return false
	}
	if len(w.queue) >= w.buffer {
		w.err = ErrSlow
		w.wake()
		return false
	}
	w.queue = append(w.queue, ev)
	w.wake()
	return true
}

// wake tells the reader that there is something to read.
func (w *Watcher) wake() {
	if w.opts.Ready != nil {
		w.opts.Ready()
		return
	}
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// end ends the watch with err after the queued events. Only the first error counts.
func (w *Watcher) end(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.mu.Unlock()
	w.wake()
}

// bucket is the index key of a watcher: its single most selective restriction.
type bucket struct {
	by    byte   // 'a': all, 'p': prefix, 'k': key, 'f': field
	field string // for 'f'
	value string
}

// watchers indexes a kind's watchers by bucket. Its mutex must be taken before the kind's,
// never after it, so that readers do not wait for filters.
type watchers struct {
	mu      sync.Mutex
	buckets map[bucket]map[*Watcher]struct{}
	fields  map[string]int // indexed fields, and how many watchers use each
	slow    []*Watcher     // cut off by the current send
	stopped bool
}

func (o *WatchOptions) bucket(kc *KindCache) bucket {
	switch {
	case o.Key != "":
		return bucket{by: 'k', value: o.Key}
	case o.Field != "" && kc.kind.Fields[o.Field] != nil:
		return bucket{by: 'f', field: o.Field, value: o.Value}
	case o.Prefix != "" && o.Prefix != kc.kind.StorePrefix && namespacePrefix(kc.kind.StorePrefix, o.Prefix) == o.Prefix:
		return bucket{by: 'p', value: o.Prefix}
	}
	return bucket{by: 'a'}
}

// namespacePrefix returns the part of a key up to the slash after the namespace.
func namespacePrefix(storePrefix, key string) string {
	if i := strings.IndexByte(key[len(storePrefix):], '/'); i >= 0 {
		return key[:len(storePrefix)+i+1]
	}
	return ""
}

func (ws *watchers) add(w *Watcher) {
	b := w.opts.bucket(w.kc)
	if ws.buckets == nil {
		ws.buckets, ws.fields = map[bucket]map[*Watcher]struct{}{}, map[string]int{}
	}
	if ws.buckets[b] == nil {
		ws.buckets[b] = map[*Watcher]struct{}{}
	}
	ws.buckets[b][w] = struct{}{}
	if b.by == 'f' {
		ws.fields[b.field]++
	}
}

func (ws *watchers) remove(w *Watcher) {
	b := w.opts.bucket(w.kc)
	set := ws.buckets[b]
	if _, ok := set[w]; !ok {
		return
	}
	delete(set, w)
	if len(set) == 0 {
		delete(ws.buckets, b)
	}
	if b.by == 'f' {
		if ws.fields[b.field]--; ws.fields[b.field] == 0 {
			delete(ws.fields, b.field)
		}
	}
}

// dispatch queues a change for the watchers that it may concern.
func (ws *watchers) dispatch(kc *KindCache, c *change) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.buckets) == 0 {
		return
	}
	it := c.item
	if it == nil {
		it = c.old
	}
	ws.send(bucket{by: 'a'}, c)
	ws.send(bucket{by: 'k', value: it.Key}, c)
	if kc.kind.Namespaced {
		ws.send(bucket{by: 'p', value: namespacePrefix(kc.kind.StorePrefix, it.Key)}, c)
	}
	for field := range ws.fields {
		get := kc.kind.Fields[field]
		var was string
		if c.old != nil {
			was = get(c.old.Object())
			ws.send(bucket{by: 'f', field: field, value: was}, c)
		}
		if c.item != nil {
			if is := get(c.item.Object()); c.old == nil || is != was {
				ws.send(bucket{by: 'f', field: field, value: is}, c)
			}
		}
	}
	ws.removeSlow()
}

func (ws *watchers) removeSlow() {
	for _, w := range ws.slow {
		ws.remove(w)
	}
	ws.slow = ws.slow[:0]
}

func (ws *watchers) send(b bucket, c *change) {
	for w := range ws.buckets[b] {
		if c.rev <= w.start {
			continue
		}
		if ev := c.event(w.filter); ev != nil && !w.push(ev) {
			ws.slow = append(ws.slow, w)
		}
	}
}

// bookmark sends a bookmark at rev to the watchers that asked for bookmarks.
func (ws *watchers) bookmark(rev store.Revision) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ev := &Event{Type: Bookmark, Revision: rev}
	for _, set := range ws.buckets {
		for w := range set {
			if w.opts.Bookmarks && rev >= w.start && !w.push(ev) {
				ws.slow = append(ws.slow, w)
			}
		}
	}
	ws.removeSlow()
}

// endCurrent ends the watchers with WatchOptions.Current.
func (ws *watchers) endCurrent(err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, set := range ws.buckets {
		for w := range set {
			if w.opts.Current {
				w.end(err)
				ws.remove(w)
			}
		}
	}
}

// endAll ends all watchers. If stop is set, no new ones are accepted.
func (ws *watchers) endAll(err error, stop bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.stopped = ws.stopped || stop
	for _, set := range ws.buckets {
		for w := range set {
			w.end(err)
		}
	}
	ws.buckets, ws.fields = nil, nil
}
