package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Key names an object within its kind. Namespace is empty for cluster-scoped kinds.
type Key struct{ Namespace, Name string }

// String returns "namespace/name", or the name of a cluster-scoped object.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// KeyOf returns the key of obj.
func KeyOf(obj Object) Key { return Key{obj.GetNamespace(), obj.GetName()} }

// CacheOptions select what a [Cache] holds. The zero value selects all objects of the kind.
type CacheOptions[T Object] struct {
	// Namespace restricts the cache to a namespace; empty means all namespaces.
	Namespace string
	// LabelSelector restricts the cache by labels, as in [ListOptions].
	LabelSelector string
	// FieldSelector restricts the cache by fields, as in [ListOptions].
	FieldSelector string
	// Indexes maps the name of an index to the function that returns the values under
	// which ByIndex finds an object. The function must be pure. [Cache.AddIndex] adds more.
	Indexes map[string]func(T) []string
	// Transform, if set, may change an object before it is stored, for instance drop
	// fields that are never read. It must keep the name, namespace, uid and
	// resourceVersion.
	Transform func(T) T
}

// Cache holds the present state of a collection. It lists and watches, resumes where a
// broken watch ended, and when the server no longer has that state, lists again and
// computes the difference. Subscribers see each change once and in order.
//
// Its objects are shared: DeepCopy one before changing it. Its memory is that of the
// collection. Events are not queued: a subscriber that blocks holds up the cache, and the
// server then ends the watch, which the cache resumes.
//
// All methods are safe for concurrent use; Run is called once.
type Cache[T Object] struct {
	r    Resource[T]
	opts CacheOptions[T]

	mu      sync.RWMutex
	items   map[Key]T
	indexes map[string]*index[T]

	// deliver is held while an event changes the state and is delivered, so that a late
	// subscriber joins between two events.
	deliver     sync.Mutex
	subscribers []*func(Event[T])

	synced   chan struct{}
	syncOnce sync.Once
	revision atomic.Uint64
	lastErr  atomic.Pointer[error]

	// Used by Run's goroutine only: where to resume, and the keys received since the
	// start of the initial state (nil outside of it).
	resume string
	seen   map[Key]struct{}
}

// NewCache returns an empty cache of T's kind, which [Cache.Run] fills. Like [For], it
// panics if T is not a built-in kind with a collection.
func NewCache[T Object](c *Client, opts CacheOptions[T]) *Cache[T] {
	return NewCacheOf(For[T](c), opts)
}

// NewCacheOf returns an empty cache of a resource, for instance of [Metadata].
func NewCacheOf[T Object](r Resource[T], opts CacheOptions[T]) *Cache[T] {
	cache := &Cache[T]{
		r: r, opts: opts,
		items:   map[Key]T{},
		indexes: make(map[string]*index[T], len(opts.Indexes)),
		synced:  make(chan struct{}),
	}
	for name, f := range opts.Indexes {
		cache.indexes[name] = &index[T]{values: f, sets: map[string]map[Key]T{}}
	}
	return cache
}

// Kind returns the kind that the cache holds.
func (c *Cache[T]) Kind() *Kind { return c.r.kind }

// Synced returns a channel that is closed when the initial state is complete and has been
// delivered to the subscribers. It stays closed.
func (c *Cache[T]) Synced() <-chan struct{} { return c.synced }

// Revision returns the revision that the state has reached, or 0 before the first sync. A
// write whose resourceVersion is not greater is visible in the cache.
func (c *Cache[T]) Revision() uint64 { return c.revision.Load() }

// Err returns the reason why the last watch failed, or nil if one has succeeded since.
func (c *Cache[T]) Err() error {
	if p := c.lastErr.Load(); p != nil {
		return *p
	}
	return nil
}

// Subscribe calls f for each change from now on, after the state has changed. The objects
// that the cache already holds come first, as Added. Calls are made one at a time, in
// order, on the goroutines of Subscribe and Run. f must be quick and must not call
// Subscribe or unsubscribe. f is not called after unsubscribe has returned.
func (c *Cache[T]) Subscribe(f func(Event[T])) (unsubscribe func()) {
	c.deliver.Lock()
	defer c.deliver.Unlock()
	for _, obj := range c.List() {
		f(Event[T]{Type: Added, Object: obj, ResourceVersion: obj.GetResourceVersion()})
	}
	entry := &f
	c.subscribers = append(c.subscribers, entry)
	return func() {
		c.deliver.Lock()
		defer c.deliver.Unlock()
		c.subscribers = slices.DeleteFunc(c.subscribers, func(e *func(Event[T])) bool { return e == entry })
	}
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// Run keeps the cache up to date until ctx ends, and then returns nil. It repeats whatever
// fails, with a delay that grows up to 5 s; [Cache.Err] returns the last failure.
func (c *Cache[T]) Run(ctx context.Context) error {
	delay := time.Duration(0)
	for {
		progress, err := c.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err == nil:
			// The server closed the stream in an orderly way: continue at once, but not
			// in a busy loop.
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge):
			// The server has forgotten that point, or never had it: it was restored
			// from a backup, say.
			slog.DebugContext(ctx, "watch expired", "resource", c.r.kind.Resource, "revision", c.resume)
			c.resume = ""
		default:
			c.lastErr.Store(&err)
			slog.DebugContext(ctx, "watch broke", "resource", c.r.kind.Resource, "error", err)
		}
		if progress {
			delay = 0
		} else {
			delay = min(max(2*delay, minBackoff), maxBackoff)
		}
		if delay > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(delay/2 + rand.N(delay)/2): //nolint:gosec // jitter needs no secrecy.
			}
		}
	}
}

// watch runs one watch to its end. progress is true if it delivered anything.
func (c *Cache[T]) watch(ctx context.Context) (progress bool, err error) {
	o := WatchOptions{
		Namespace:       c.opts.Namespace,
		LabelSelector:   c.opts.LabelSelector,
		FieldSelector:   c.opts.FieldSelector,
		AllowBookmarks:  true,
		ResourceVersion: c.resume,
	}
	c.seen = nil
	if c.resume == "" {
		o.SendInitialEvents = true
		c.seen = map[Key]struct{}{}
	}
	for ev, err := range c.r.Watch(ctx, o) {
		if err != nil {
			if c.seen != nil && !progress && streamingListRefused(err) {
				return c.list(ctx)
			}
			return progress, err
		}
		if !progress {
			progress = true
			c.lastErr.Store(nil)
		}
		if err := c.receive(ev); err != nil {
			return progress, err
		}
	}
	return progress, nil
}

// streamingListRefused reports whether err is the answer of a server that does not send the
// initial state in a watch.
func streamingListRefused(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

// list fetches the initial state from a server whose watches do not send it.
func (c *Cache[T]) list(ctx context.Context) (progress bool, err error) {
	items, meta, err := c.r.List(ctx, ListOptions{
		Namespace: c.opts.Namespace, LabelSelector: c.opts.LabelSelector, FieldSelector: c.opts.FieldSelector,
	})
	if err != nil {
		return false, err
	}
	for _, obj := range items {
		if err := c.receive(Event[T]{Type: Added, Object: obj, ResourceVersion: obj.GetResourceVersion()}); err != nil {
			return false, err
		}
	}
	return true, c.receive(Event[T]{Type: Bookmark, ResourceVersion: meta.ResourceVersion, InitialEnd: true})
}

// receive processes the next event of the stream.
func (c *Cache[T]) receive(ev Event[T]) error {
	c.deliver.Lock()
	defer c.deliver.Unlock()
	if c.seen != nil {
		return c.receiveInitial(ev)
	}
	rv, err := strconv.ParseUint(ev.ResourceVersion, 10, 64)
	if err != nil {
		return fmt.Errorf("client: watch of %s: resource version %q", c.r.kind.Resource, ev.ResourceVersion)
	}
	// A server that starts a resumed watch too early repeats itself; an event
	// counts once.
	if ev.Type != Bookmark && rv <= c.revision.Load() {
		return nil
	}
	switch ev.Type {
	case Added, Modified:
		c.put(ev)
	case Deleted:
		c.remove(KeyOf(ev.Object), ev)
	}
	c.advance(ev.ResourceVersion, rv)
	return nil
}

// receiveInitial processes an event of the initial state, which may differ from what the
// cache holds by any number of changes.
func (c *Cache[T]) receiveInitial(ev Event[T]) error {
	switch ev.Type {
	case Added, Modified:
		key := KeyOf(ev.Object)
		c.seen[key] = struct{}{}
		old, ok := c.Get(key.Namespace, key.Name)
		if ok && old.GetResourceVersion() == ev.Object.GetResourceVersion() && old.GetUID() == ev.Object.GetUID() {
			return nil
		}
		if ok && old.GetUID() != ev.Object.GetUID() {
			c.remove(key, Event[T]{Type: Deleted, ResourceVersion: ev.ResourceVersion})
		}
		c.put(ev)
	case Deleted:
		delete(c.seen, KeyOf(ev.Object))
		c.remove(KeyOf(ev.Object), ev)
	case Bookmark:
		if !ev.InitialEnd {
			return nil
		}
		rv, err := strconv.ParseUint(ev.ResourceVersion, 10, 64)
		if err != nil {
			return errors.New("client: the initial state ended without a revision")
		}
		for _, obj := range c.List() {
			key := KeyOf(obj)
			if _, ok := c.seen[key]; !ok {
				c.remove(key, Event[T]{Type: Deleted, ResourceVersion: ev.ResourceVersion})
			}
		}
		c.seen = nil
		c.advance(ev.ResourceVersion, rv)
		c.syncOnce.Do(func() { close(c.synced) })
	}
	return nil
}

func (c *Cache[T]) advance(resume string, rv uint64) {
	c.resume = resume
	c.revision.Store(rv)
}

// put stores an object and delivers the event.
func (c *Cache[T]) put(ev Event[T]) {
	if c.opts.Transform != nil {
		ev.Object = c.opts.Transform(ev.Object)
	}
	key := KeyOf(ev.Object)
	c.mu.Lock()
	old, ok := c.items[key]
	c.items[key] = ev.Object
	for _, ix := range c.indexes {
		ix.replace(key, old, ok, ev.Object, true)
	}
	c.mu.Unlock()
	ev.Type = Added
	if ok {
		ev.Type, ev.Old = Modified, old
	}
	c.publish(ev)
}

// remove drops an object, if the cache has it, and delivers the event. If ev has no object,
// the event carries the one that the cache had.
func (c *Cache[T]) remove(key Key, ev Event[T]) {
	var none T
	c.mu.Lock()
	old, ok := c.items[key]
	delete(c.items, key)
	for _, ix := range c.indexes {
		ix.replace(key, old, ok, none, false)
	}
	c.mu.Unlock()
	if !ok {
		return
	}
	if Object(ev.Object) == Object(none) {
		ev.Object = old
	} else if c.opts.Transform != nil {
		ev.Object = c.opts.Transform(ev.Object)
	}
	ev.Old = old
	c.publish(ev)
}

func (c *Cache[T]) publish(ev Event[T]) {
	for _, f := range c.subscribers {
		(*f)(ev)
	}
}
