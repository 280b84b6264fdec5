package watchcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Errors that end a watch.
var (
	// ErrSlow ends a watcher that fell too far behind. It may resume after the last event that
	// it received.
	ErrSlow = errors.New("watcher fell too far behind")
	// ErrStopped ends a watcher that was closed or whose cache has stopped.
	ErrStopped = errors.New("watch cache stopped")
	// ErrReloaded ends a watcher whose cache had to reload its state. Watch again.
	ErrReloaded = errors.New("watch cache reloaded its state")
)

// ExpiredError means that the events after the revision Asked are not known any more; those
// after Oldest are. List again (410 Expired).
type ExpiredError struct{ Asked, Oldest store.Revision }

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("too old resource version: %d (%d)", e.Asked, e.Oldest)
}

// Config configures a Cache. A zero number means the default.
type Config struct {
	Store store.Store
	// Kinds are the kinds to hold. Kinds with the same StorePrefix share the cache of the
	// first.
	Kinds []*resource.Kind
	// Prefix is the part of the store to watch; default "/registry/".
	Prefix string
	// HistoryEvents and HistoryBytes bound the events that each kind keeps for watches that
	// resume; defaults 20,000 and 16 MiB. Events older than HistoryAge are dropped too; default
	// 75 s, as in Kubernetes' watch cache. The last HistoryMin events are kept whatever their
	// size and age; default 100.
	HistoryEvents, HistoryMin int
	HistoryBytes              int64
	HistoryAge                time.Duration
	// Decoded is the number of objects of a kind that are held decoded besides their encoding;
	// default 1,024.
	Decoded int
	// Buffer is the number of events that a watcher may fall behind; default 10,000.
	Buffer int
	// BookmarkEvery is the interval between bookmarks; default 45 s.
	BookmarkEvery time.Duration
	// PageSize is the page size of lists of the store; default 2,000.
	PageSize int64
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// Cache holds the objects of all kinds. Create it with New, call Run to feed it, and wait for
// Ready.
type Cache struct {
	cfg   Config
	kinds []*KindCache // by prefix
	ready chan struct{}
	once  sync.Once

	mu       sync.Mutex
	rev      store.Revision
	waiters  map[*waiter]struct{}
	wake     chan struct{} // buffered; asks for the store's progress, because a reader waits
	stopped  bool
	stopping chan struct{}

	// behind is why the cache currently cannot follow its store, or nil if it can.
	behind atomic.Pointer[error]

	expected expected

	// newest is the store's revision when the state was loaded. It is used by Run only.
	newest store.Revision
}

// waiter waits for a revision.
type waiter struct {
	rev  store.Revision
	done chan struct{}
}

// New returns an empty cache.
func New(cfg Config) *Cache {
	def(&cfg.Prefix, "/registry/")
	def(&cfg.HistoryEvents, 20000)
	def(&cfg.HistoryMin, 100)
	def(&cfg.HistoryBytes, 16<<20)
	def(&cfg.HistoryAge, 75*time.Second)
	def(&cfg.Decoded, 1024)
	def(&cfg.Buffer, 10000)
	def(&cfg.BookmarkEvery, 45*time.Second)
	def(&cfg.PageSize, 2000)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Cache{
		cfg:      cfg,
		ready:    make(chan struct{}),
		waiters:  map[*waiter]struct{}{},
		wake:     make(chan struct{}, 1),
		stopping: make(chan struct{}),
	}
	seen := map[string]bool{}
	for _, k := range cfg.Kinds {
		if !seen[k.StorePrefix] {
			seen[k.StorePrefix] = true
			c.kinds = append(c.kinds, newKindCache(c, k))
		}
	}
	sort.Slice(c.kinds, func(i, j int) bool { return c.kinds[i].kind.StorePrefix < c.kinds[j].kind.StorePrefix })
	return c
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Kind returns the cache of one kind, or nil if the kind is not held.
func (c *Cache) Kind(k *resource.Kind) *KindCache {
	kc := c.byKey(k.StorePrefix)
	if kc == nil || kc.kind.StorePrefix != k.StorePrefix {
		return nil
	}
	return kc
}

// byKey returns the kind whose prefix a key has, or nil.
func (c *Cache) byKey(key string) *KindCache {
	i := sort.Search(len(c.kinds), func(i int) bool { return c.kinds[i].kind.StorePrefix > key })
	if i == 0 || !strings.HasPrefix(key, c.kinds[i-1].kind.StorePrefix) {
		return nil
	}
	return c.kinds[i-1]
}

// Ready is closed when the cache has reached the revision that was the store's newest when the
// state was first loaded.
func (c *Cache) Ready() <-chan struct{} { return c.ready }

// Revision returns the revision that the cache has reached: every kind contains all writes up
// to it.
func (c *Cache) Revision() store.Revision {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rev
}

// Fresh waits until the cache contains every write that was acknowledged before the call, and
// returns the store's revision at the call. A read after it is linearizable.
func (c *Cache) Fresh(ctx context.Context) (store.Revision, error) {
	rev, err := c.cfg.Store.Revision(ctx)
	if err != nil {
		return 0, err
	}
	return rev, c.WaitFor(ctx, rev)
}

// WaitFor waits until the cache has reached rev. It fails with ctx's error or ErrStopped.
func (c *Cache) WaitFor(ctx context.Context, rev store.Revision) error {
	c.mu.Lock()
	if c.rev >= rev && !c.stopped {
		c.mu.Unlock()
		return nil
	}
	if c.stopped {
		c.mu.Unlock()
		return ErrStopped
	}
	w := &waiter{rev: rev, done: make(chan struct{})}
	c.waiters[w] = struct{}{}
	c.mu.Unlock()
	c.poke()
	var err error
	select {
	case <-w.done:
		return nil
	case <-c.stopping:
		err = ErrStopped
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.mu.Lock()
	delete(c.waiters, w)
	c.mu.Unlock()
	return err
}

// poke wakes the goroutine that asks the store for progress.
func (c *Cache) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// reached releases the waiters for rev and earlier revisions. Every kind must have applied all
// events up to rev.
func (c *Cache) reached(rev store.Revision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rev > c.rev {
		c.rev = rev
	}
	for w := range c.waiters {
		if w.rev <= c.rev {
			close(w.done)
			delete(c.waiters, w)
		}
	}
}

// waiting reports whether there are waiters.
func (c *Cache) waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiters) > 0
}
