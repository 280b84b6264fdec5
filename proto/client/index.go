package client

// index finds objects by the values that a function gives them.
type index[T Object] struct {
	values func(T) []string
	sets   map[string]map[Key]T
}

// replace moves a key from its old object's values to its new one's.
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

// Get finds an object.
func (c *Cache[T]) Get(namespace, name string) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	obj, ok := c.items[Key{namespace, name}]
	return obj, ok
}

// List is all objects, in no order.
func (c *Cache[T]) List() []T {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]T, 0, len(c.items))
	for _, obj := range c.items {
		out = append(out, obj)
	}
	return out
}

// Len is the number of objects.
func (c *Cache[T]) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.items)
}

// ByIndex is the objects under a value of an index, in no order. An index that
// does not exist is a programmer's error and panics.
func (c *Cache[T]) ByIndex(name, value string) []T {
	ix := c.indexes[name]
	if ix == nil {
		panic("client: no index " + name)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	set := ix.sets[value]
	out := make([]T, 0, len(set))
	for _, obj := range set {
		out = append(out, obj)
	}
	return out
}
