package watchcache

// Held reports whether the item has its object decoded.
func (it *Item) Held() bool { return it.object.Load() != nil }
