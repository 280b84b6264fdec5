package etcd

import (
	"context"
	"errors"
	"time"

	"keelson.dev/services/apiserver/internal/store"
)

// Retention configures how much history is kept: revisions younger than Age, but at most the
// newest Most of them, except that those younger than Least are always kept.
type Retention struct {
	// Age defaults to 5 min, which Kubernetes keeps.
	Age time.Duration
	// Most defaults to 30,000: with thousands of nodes, hundreds of Leases are renewed each
	// second, and each renewal is a revision.
	Most store.Revision
	// Least defaults to 1 min. It is also the interval between checks.
	Least time.Duration
	// Worth is the least number of revisions that are worth a compaction, which reads the whole
	// store; default 10,000. Fewer are compacted if the last compaction was at least Age ago.
	Worth store.Revision
	// Check is the interval at which the space is checked; default 5 s.
	Check time.Duration
}

func (r Retention) orDefault() Retention {
	def := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&r.Age, 5*time.Minute)
	def(&r.Least, time.Minute)
	def(&r.Check, 5*time.Second)
	if r.Most <= 0 {
		r.Most = 30_000
	}
	if r.Worth <= 0 {
		r.Worth = 10_000
	}
	return r
}

// moment is the store's revision at a time.
type moment struct {
	at  time.Time
	rev store.Revision
}

// past is what compactions knows of a store's history.
type past struct {
	seen      []moment // its newest revision at each check; the first one here is the last that is older than Age
	compacted moment   // the time and revision of the last compaction
}

// due returns the revision to compact at now, or 0 if no compaction is due.
func (r *Retention) due(p *past, now moment) store.Revision {
	p.seen = append(p.seen, now)
	var young store.Revision // the newest revision that is at least Least old
	first := 0
	for i, m := range p.seen {
		if age := now.at.Sub(m.at); age >= r.Age {
			first = i
			young = m.rev
		} else if age >= r.Least {
			young = m.rev
		}
	}
	var at store.Revision
	if now.at.Sub(p.seen[first].at) >= r.Age {
		at = p.seen[first].rev
	}
	p.seen = p.seen[first:]
	at = max(at, min(young, now.rev-r.Most))
	forgets := at - p.compacted.rev
	if forgets <= 0 || forgets < r.Worth && now.at.Sub(p.compacted.at) < r.Age {
		return 0
	}
	return at
}

// compactions calls compact as r requires until ctx ends. Several stores of one etcd may do so
// at the same time: the later one finds nothing left to compact.
func (s *Store) compactions(ctx context.Context, r Retention, stopped <-chan struct{}, compact func(context.Context, store.Revision) error) error {
	r = r.orDefault()
	tick := time.NewTicker(r.Least)
	defer tick.Stop()
	p := past{compacted: moment{at: time.Now()}}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-stopped:
			if s.closed.Load() {
				return nil
			}
			return errors.New("etcd stopped by itself")
		case <-tick.C:
		}
		rev, err := s.Revision(ctx)
		if err != nil {
			s.log.WarnContext(ctx, "cannot compact the store", "error", err)
			continue
		}
		now := moment{time.Now(), rev}
		at := r.due(&p, now)
		if at == 0 {
			continue
		}
		if err := compact(ctx, at); err != nil {
			if ctx.Err() == nil {
				s.log.WarnContext(ctx, "cannot compact the store", "error", err, "revision", int64(at))
			}
			continue
		}
		p.compacted = moment{now.at, at}
	}
}

// Maintain compacts the store until ctx ends.
func (r *Remote) Maintain(ctx context.Context, keep Retention) error {
	return r.compactions(ctx, keep, nil, r.Compact)
}

// Intervals at which mapped pages are released: normally, and during a compaction, which reads
// the whole file.
const (
	giveBackEvery   = 10 * time.Second
	compactionEvery = 100 * time.Millisecond
)

// Maintain compacts the store, defragments its file when it is worthwhile, returns space when
// the store is full (see Space), and keeps the file from counting as memory, until ctx ends. It fails if etcd stops by itself.
func (e *Embedded) Maintain(ctx context.Context, keep Retention) error {
	defer e.givingBack(giveBackEvery)()
	keep = keep.orDefault()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.reclaim(ctx, keep.Check)
	}()
	defer func() { cancel(); <-done }()
	return e.compactions(ctx, keep, e.Stopped(), e.compact)
}

func (e *Embedded) compact(ctx context.Context, at store.Revision) error {
	stop := e.givingBack(compactionEvery)
	err := e.Compact(ctx, at)
	stop()
	if err != nil {
		return err
	}
	e.giveBack()
	if e.Space().worthwhile() {
		if err := e.defragment(ctx); err != nil {
			e.log.WarnContext(ctx, "cannot defragment the store", "error", err)
		}
	}
	return nil
}

// givingBack releases mapped pages at an interval until stop is called.
func (e *Embedded) givingBack(every time.Duration) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				e.giveBack()
			}
		}
	}()
	return func() { close(end); <-done }
}

// Defragment returns the free pages of the backend's file to the file system. It fails while a
// snapshot is being read: it would wait until that ends, and block all writes meanwhile.
func (e *Embedded) Defragment() error {
	if !e.saving.TryLock() {
		return errors.New("a snapshot of the store is being read")
	}
	defer e.saving.Unlock()
	began := time.Now()
	e.mapped.Lock()
	defer e.mapped.Unlock()
	if e.defragmenting != nil {
		e.defragmenting(true)
		defer e.defragmenting(false)
	}
	before := e.etcd.Server.Backend().Size()
	if err := e.etcd.Server.Defragment(); err != nil {
		return err
	}
	e.log.InfoContext(context.Background(), "defragmented the store", "bytes_before", before, "bytes_after", e.etcd.Server.Backend().Size(), "took", time.Since(began))
	return nil
}
