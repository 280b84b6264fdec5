package client

// index finds objects by the values that a function returns for them.
type index[T Object] struct {
	values func(T) []string
	sets   map[string]map[Key]T
}

// replace moves a key from the values of its old object to those of its new one.
func (ix *index[T]) replace(key Key, old T, hasOld bool, obj T, hasNew bool) {
	if hasOld {
		for _, v := range ix.values(old) {
			if set := ix.sets[v]; set != nil {
				delete(set, key)
				if len(set) == 0 {
					delete(ix.sets, v)
				}
			}
		}
	}
	if hasNew {
		for _, v := range ix.values(obj) {
			set := ix.sets[v]
			if set == nil {
				set = map[Key]T{}
				ix.sets[v] = set
			}
			set[key] = obj
		}
	}
}

// Get returns an object, and whether the cache holds it. namespace is empty for
// cluster-scoped kinds.
func (c *Cache[T]) Get(namespace, name string) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	obj, ok := c.items[Key{namespace, name}]
	return obj, ok
}

// List returns all objects, in no particular order. The slice is the caller's, the objects
// are shared.
func (c *Cache[T]) List() []T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]T, 0, len(c.items))
	for _, obj := range c.items {
		out = append(out, obj)
	}
	return out
}

// Len returns the number of objects.
func (c *Cache[T]) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.items)
}

// AddIndex adds an index to the cache, which may hold objects already. values returns the
// values under which ByIndex finds an object, and must be pure. AddIndex does nothing if the
// cache has an index of that name.
func (c *Cache[T]) AddIndex(name string, values func(T) []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.indexes[name] != nil {
		return
	}
	ix := &index[T]{values: values, sets: map[string]map[Key]T{}}
	for key, obj := range c.items {
		var none T
		ix.replace(key, none, false, obj, true)
	}
	c.indexes[name] = ix
}

// ByIndex returns the objects that the index of the given name lists under value, in no
// particular order. It panics if the cache has no such index.
func (c *Cache[T]) ByIndex(name, value string) []T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ix := c.indexes[name]
	if ix == nil {
		panic("client: no index " + name)
	}
	set := ix.sets[value]
	out := make([]T, 0, len(set))
	for _, obj := range set {
		out = append(out, obj)
	}
	return out
}
