package watchcache

import (
	"context"
	"strings"
	"sync"

	"keelson.dev/services/apiserver/internal/store"
)

// WatchOptions say what a watcher wants.
type WatchOptions struct {
	// Prefix limits the watch to keys that have it: Kind.Prefix(namespace). Empty
	// is the whole kind.
	Prefix string
	// Key limits it to one object: Kind.Key(namespace, name).
	Key string
	// Field and Value limit it to objects whose field (one of Kind.Fields) has the
	// value. Among any number of such watchers, only those concerned pay for an
	// event, so name here the most selective requirement of a field selector.
	Field, Value string
	// Filter, if set, limits it to the objects of which it says true. It is asked
	// about each state once, must be pure, and holds up others while it runs.
	Filter func(*Item) bool
	// After is the revision after which to start; the events since are delivered
	// first. With Initial it is ignored.
	After store.Revision
	// Initial delivers the present state first, as Added events.
	Initial bool
	// InitialEnd delivers a bookmark after the initial state.
	InitialEnd bool
	// Bookmarks delivers a bookmark now and then.
	Bookmarks bool
	// Current ends the watch, or refuses it, with store.ErrUnavailable while the
	// store says that too few of its members can be reached: others may be able to
	// tell what happens.
	Current bool
	// Buffer overrides Config.Buffer.
	Buffer int
}

// Watcher delivers the events of one watch. One goroutine may use it at a time;
// Close may be called by any.
type Watcher struct {
	kc     *KindCache
	opts   WatchOptions
	buffer int
	filter func(*Item) bool // Filter and the other limits

	// What was before it was registered, worked off by Next.
	backlog    []*change
	initial    []*Item
	initialEnd bool
	// start is the revision up to which that goes: later changes come by dispatch.
	start store.Revision

	mu     sync.Mutex
	queue  []*Event
	err    error         // ends the watch after the queue
	signal chan struct{} // buffered
}

// Watch starts a watch. It fails with *ExpiredError when the events after
// WatchOptions.After are no longer known. A revision that the cache has not
// reached yet delivers what comes after it; wait with Cache.WaitFor first to
// refuse those from the future.
func (kc *KindCache) Watch(o WatchOptions) (*Watcher, error) {
	w := &Watcher{kc: kc, opts: o, buffer: o.Buffer, signal: make(chan struct{}, 1)}
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

// begin takes over what was before the watch.
func (w *Watcher) begin() error {
	kc, o := w.kc, w.opts
	rev := kc.cache.Revision() // before the lock: the state is at least that new
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

// collect is the present state within the prefix or key of a watch; the filter
// is applied later, outside the lock.
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

// filter joins the limits of a watch.
func (kc *KindCache) filter(o WatchOptions) func(*Item) bool {
	field := kc.kind.Fields[o.Field]
	if o.Key == "" && (o.Prefix == "" || o.Prefix == kc.kind.StorePrefix) && field == nil {
		return o.Filter
	}
	return func(it *Item) bool {
		return (o.Key == "" || it.Key == o.Key) &&
			strings.HasPrefix(it.Key, o.Prefix) &&
			(field == nil || field(it.Object) == o.Value) &&
			(o.Filter == nil || o.Filter(it))
	}
}

// Next waits for events and returns at least one. Its errors are ErrSlow,
// ErrStopped, ErrReloaded and store.ErrUnavailable (after the events that came before)
// and ctx's.
func (w *Watcher) Next(ctx context.Context) ([]*Event, error) {
	if events := w.first(); len(events) > 0 {
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

// chunk bounds what one Next returns of the initial state and the backlog.
const chunk = 500

// first returns a part of what was before the watch began.
func (w *Watcher) first() []*Event {
	var events []*Event
	for len(w.initial) > 0 && len(events) < chunk {
		it := w.initial[0]
		w.initial = w.initial[1:]
		if w.filter == nil || w.filter(it) {
			events = append(events, &Event{Type: Added, Item: it, Revision: it.Revision, Frames: &Frames{}})
		}
	}
	for len(w.backlog) > 0 && len(events) < chunk {
		c := w.backlog[0]
		w.backlog = w.backlog[1:]
		if ev := c.event(w.filter); ev != nil {
			events = append(events, ev)
		}
	}
	if w.initialEnd && len(w.initial) == 0 && len(events) < chunk {
		w.initialEnd = false
		events = append(events, &Event{Type: Bookmark, Revision: w.start, InitialEnd: true})
	}
	return events
}

// Close ends the watch; a waiting Next returns ErrStopped.
func (w *Watcher) Close() {
	ws := &w.kc.watchers
	ws.mu.Lock()
	ws.remove(w)
	ws.mu.Unlock()
	w.end(ErrStopped)
}

// push queues an event, or cuts the watcher off.
func (w *Watcher) push(ev *Event) (alive bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return false
	}
	if len(w.queue) >= w.buffer {
		w.err = ErrSlow
		return false
	}
	w.queue = append(w.queue, ev)
	select {
	case w.signal <- struct{}{}:
	default:
	}
	return true
}

func (w *Watcher) end(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.mu.Unlock()
	select {
	case w.signal <- struct{}{}:
	default:
	}
}

// bucket is what a watcher is found by: its one most selective limit.
type bucket struct {
	by    byte   // 'a'll, 'p'refix, 'k'ey, 'f'ield
	field string // with 'f'
	value string
}

// watchers of a kind, by what they are found by. Its mutex is taken before the
// kind's, never after it, so that readers do not wait for filters.
type watchers struct {
	mu      sync.Mutex
	buckets map[bucket]map[*Watcher]struct{}
	fields  map[string]int // fields that watchers are found by, and how many
	slow    []*Watcher
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

// namespacePrefix is the part of a key up to the slash after the namespace.
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

// dispatch queues a change at the watchers that it may concern.
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
			was = get(c.old.Object)
			ws.send(bucket{by: 'f', field: field, value: was}, c)
		}
		if c.item != nil {
			if is := get(c.item.Object); c.old == nil || is != was {
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

// bookmark tells those who want it that they have seen everything up to rev.
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

// endCurrent ends those who want to be kept up.
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

// endAll cuts everybody off; with stop, no one may come any more.
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
