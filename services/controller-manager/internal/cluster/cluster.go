// Package cluster holds what the controllers know of the cluster: one cache for each
// kind, shared by all of them and kept warm while another process leads.
//
// A controller asks for the caches that it reads when it is made, and names the indexes
// that it looks objects up by. What no controller asks for is not cached. All caches must
// be asked for before they are started; see [Cluster.Seal].
//
// Objects are cached without the fields that no controller reads (see each transform),
// to save memory. They must never be written back whole unless their transform allows
// it: pods and nodes are written by patch.
package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/event"
)

// Indexes that [Of] knows. A controller adds one that only it needs with AddIndex.
const (
	// ByController finds objects by the uid of their controller.
	ByController = "controller"
	// ByOrphanage finds objects without a controller by their namespace.
	ByOrphanage = "orphanage"
	// ByNamespace finds objects by their namespace.
	ByNamespace = "namespace"
	// ByNode finds pods by the node they are bound to; "" finds unbound pods.
	ByNode = "node"
)

// Cluster holds the caches and the client and recorder that write.
type Cluster struct {
	Client *client.Client
	Events *event.Recorder

	caches *caches
}

// Cache is any cache.
type Cache interface {
	Kind() *client.Kind
	Run(ctx context.Context) error
	Synced() <-chan struct{}
	CatchUp(ctx context.Context) error
	Err() error
}

// caches is shared by the copies of a cluster.
type caches struct {
	made func(Cache)

	mu      sync.Mutex
	entries []*entry
	sealed  bool
}

// entry is a cache and what it holds.
type entry struct {
	Any

	kind              *client.Kind
	namespace, fields string
	// metadata is true for a cache that holds metadata alone.
	metadata bool
	// typed is the *client.Cache[T].
	typed any
}

// New returns a cluster without caches. made, if not nil, is called with each cache that
// is made; without it, the caller runs the caches that Seal returns.
func New(c *client.Client, events *event.Recorder, made func(Cache)) *Cluster {
	return &Cluster{Client: c, Events: events, caches: &caches{made: made}}
}

// As returns the same cluster for a control loop that records its events under its own
// name.
func (s *Cluster) As(component string) *Cluster {
	out := *s
	out.Events = s.Events.As(component)
	return &out
}

// Selection is a part of a kind's objects, for a cache of its own.
type Selection[T client.Object] struct {
	// Namespace and FieldSelector restrict the objects, as in [client.CacheOptions].
	Namespace, FieldSelector string
	// Transform drops the fields that are not read; nil drops managedFields alone.
	Transform func(T) T
}

// Of returns the cache of all objects of a kind, and makes it if there is none yet.
// indexes names those of this package's indexes that the caller looks objects up by.
func Of[T client.Object](s *Cluster, indexes ...string) *client.Cache[T] {
	return Select(s, Selection[T]{Transform: transform[T]()}, indexes...)
}

// Select returns the cache of a selection, and makes it if there is none yet. All callers
// must give a selection the same transform.
func Select[T client.Object](s *Cluster, sel Selection[T], indexes ...string) *client.Cache[T] {
	kind := client.For[T](s.Client).Kind()
	cache, isNew := find(s.caches, kind, sel.Namespace, sel.FieldSelector, false, func() *client.Cache[T] {
		if sel.Transform == nil {
			sel.Transform = slim[T]
		}
		return client.NewCache(s.Client, client.CacheOptions[T]{Namespace: sel.Namespace, FieldSelector: sel.FieldSelector, Transform: sel.Transform})
	})
	for _, name := range indexes {
		values := common[T](name)
		if values == nil {
			panic(fmt.Sprintf("cluster: no index %q of %s", name, kind.Resource))
		}
		cache.AddIndex(name, values)
	}
	if isNew && s.caches.made != nil {
		s.caches.made(cache)
	}
	return cache
}

// find returns the cache of a selection, which newCache makes if there is none.
func find[T client.Object](c *caches, kind *client.Kind, namespace, fields string, metadata bool, newCache func() *client.Cache[T]) (cache *client.Cache[T], isNew bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.lookUp(kind, namespace, fields, metadata); e != nil {
		return e.typed.(*client.Cache[T]), false
	}
	if c.sealed {
		panic("cluster: a cache of " + kind.Resource + " is asked for after the caches were started")
	}
	cache = newCache()
	c.entries = append(c.entries, &entry{Any: anyOf(cache), kind: kind, namespace: namespace, fields: fields, metadata: metadata, typed: cache})
	return cache, true
}

// lookUp finds an entry; c.mu is held.
func (c *caches) lookUp(kind *client.Kind, namespace, fields string, metadata bool) *entry {
	i := slices.IndexFunc(c.entries, func(e *entry) bool {
		return e.kind == kind && e.namespace == namespace && e.fields == fields && e.metadata == metadata
	})
	if i < 0 {
		return nil
	}
	return c.entries[i]
}

// Seal returns the caches, for the caller to run. After it no other cache can be made. A
// cache of metadata is left out if its kind has since been asked for in full.
func (s *Cluster) Seal() []Cache {
	c := s.caches
	c.mu.Lock()
	var whole []*client.Kind
	for _, e := range c.entries {
		if e.metadata && !slices.Contains(whole, e.kind) {
			whole = append(whole, e.kind)
		}
	}
	c.entries = slices.DeleteFunc(c.entries, func(e *entry) bool { return e.metadata })
	c.mu.Unlock()
	for _, k := range whole {
		All(s, k)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed = true
	out := make([]Cache, len(c.entries))
	for i, e := range c.entries {
		out[i] = e.Any
	}
	return out
}

// CatchUp waits until all caches but those of metadata show what the previous leader
// wrote last.
func (s *Cluster) CatchUp(ctx context.Context) error {
	return s.catchUp(ctx, func(e *entry) bool { return !e.metadata })
}

// CatchUpAll is CatchUp for all caches.
func (s *Cluster) CatchUpAll(ctx context.Context) error {
	return s.catchUp(ctx, func(*entry) bool { return true })
}

func (s *Cluster) catchUp(ctx context.Context, which func(*entry) bool) error {
	s.caches.mu.Lock()
	var entries []*entry
	for _, e := range s.caches.entries {
		if which(e) {
			entries = append(entries, e)
		}
	}
	s.caches.mu.Unlock()
	errs := make(chan error, len(entries))
	for _, e := range entries {
		go func() { errs <- e.CatchUp(ctx) }()
	}
	var first error
	for range entries {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// common returns the function of one of this package's indexes, or nil.
func common[T client.Object](name string) func(T) []string {
	var none T
	_, pods := any(none).(*corev1.Pod)
	switch {
	case name == ByController:
		return controllerOf[T]
	case name == ByOrphanage:
		return orphanage[T]
	case name == ByNamespace:
		return namespaceOf[T]
	case name == ByNode && pods:
		return func(obj T) []string { return []string{any(obj).(*corev1.Pod).Spec.NodeName} }
	}
	return nil
}

func controllerOf[T client.Object](obj T) []string {
	if ref := metav1.GetControllerOfNoCopy(obj); ref != nil {
		return []string{string(ref.UID)}
	}
	return nil
}

func orphanage[T client.Object](obj T) []string {
	if metav1.GetControllerOfNoCopy(obj) == nil {
		return []string{obj.GetNamespace()}
	}
	return nil
}

func namespaceOf[T client.Object](obj T) []string { return []string{obj.GetNamespace()} }

// ClaimName returns the claim of a pod's volume, or "" if there is none. The claim of a
// generic ephemeral volume is named after the pod and the volume.
func ClaimName(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}
