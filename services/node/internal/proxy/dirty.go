package proxy

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// changes are the Services to compute again, and the traces of the writes that caused it.
type changes struct {
	services []types.NamespacedName
	causes   []string
}

// dirtySet collects changes until the loop takes them. Its size is bounded by the number of
// Services: a Service that changed twice is recorded once.
type dirtySet struct {
	wake chan struct{}

	mu     sync.Mutex
	keys   map[types.NamespacedName]struct{}
	causes []string
	since  time.Time
}

func newDirtySet() *dirtySet {
	return &dirtySet{wake: make(chan struct{}, 1), keys: map[types.NamespacedName]struct{}{}}
}

func (d *dirtySet) add(c Change) {
	d.mu.Lock()
	if len(d.keys) == 0 {
		d.since = time.Now()
	}
	d.keys[c.Service] = struct{}{}
	if c.Traceparent != "" && len(d.causes) < maxCauses {
		d.causes = append(d.causes, c.Traceparent)
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *dirtySet) take() (changes, time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	since := d.since
	if len(d.keys) == 0 {
		since = time.Now()
	}
	c := changes{services: make([]types.NamespacedName, 0, len(d.keys)), causes: d.causes}
	for k := range d.keys {
		c.services = append(c.services, k)
	}
	clear(d.keys)
	d.causes = nil
	return c, since
}
