package etcd

import (
	"context"
	"errors"
	"time"

	"keelson.dev/services/apiserver/internal/store"
)

// Retention says how much history is kept.
type Retention struct {
	// Every is the time between two compactions; default 5 min. What is older
	// than that is forgotten,
	Every time.Duration
	// Keep revisions excepted; default 10,000.
	Keep store.Revision
}

func (r Retention) orDefault() Retention {
	if r.Every <= 0 {
		r.Every = 5 * time.Minute
	}
	if r.Keep <= 0 {
		r.Keep = 10000
	}
	return r
}

// compactions compacts at what was the newest revision one interval ago, or
// earlier to keep enough, until ctx ends. Several stores over one etcd may do so
// at once: the later one finds nothing left to do.
func (s *Store) compactions(ctx context.Context, r Retention, stopped <-chan struct{}, after func()) error {
	r = r.orDefault()
	tick := time.NewTicker(r.Every)
	defer tick.Stop()
	var before store.Revision
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-stopped:
			if s.closed.Load() {
				return nil
			}
			return errors.New("etcd ended by itself")
		case <-tick.C:
		}
		now, err := s.Revision(ctx)
		if err != nil {
			s.log.Warn("cannot compact the store", "error", err)
			continue
		}
		if at := min(before, now-r.Keep); at > 0 {
			if err := s.Compact(ctx, at); err != nil && ctx.Err() == nil {
				s.log.Warn("cannot compact the store", "error", err, "revision", int64(at))
			}
		}
		before = now
		if after != nil {
			after()
		}
	}
}

// Maintain compacts the store until ctx ends.
func (r *Remote) Maintain(ctx context.Context, keep Retention) error {
	return r.compactions(ctx, keep, nil, nil)
}

// Bytes that must be free in the backend's file, and the part of it that they
// must be, for a defragmentation: writes stand still while it copies the rest.
const (
	defragFree = 256 << 20
	defragPart = 2
)

// Maintain compacts the store, and defragments its file where that is worthwhile,
// until ctx ends. It fails when etcd ends without having been asked to.
func (e *Embedded) Maintain(ctx context.Context, keep Retention) error {
	return e.compactions(ctx, keep, e.Stopped(), func() {
		size, used := e.etcd.Server.Backend().Size(), e.etcd.Server.Backend().SizeInUse()
		if free := size - used; free < defragFree || free < size/defragPart {
			return
		}
		if err := e.Defragment(); err != nil {
			e.log.Warn("cannot defragment the store", "error", err)
		}
	})
}

// Defragment gives the free pages of the backend's file back.
func (e *Embedded) Defragment() error {
	began := time.Now()
	before := e.etcd.Server.Backend().Size()
	if err := e.etcd.Server.Defragment(); err != nil {
		return err
	}
	e.log.Info("defragmented the store", "bytesBefore", before, "bytesAfter", e.etcd.Server.Backend().Size(), "took", time.Since(began))
	return nil
}
