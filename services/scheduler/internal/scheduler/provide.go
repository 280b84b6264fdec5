package scheduler

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"keelson.dev/proto/client"
)

// provideTime is how long a pod's claims may take to get their volumes before the pod
// is decided again.
const provideTime = 10 * time.Minute

// provide writes what is needed for the claims of a batch of pods to get their volumes.
// The watch of the claims shows when that is done.
func (s *Scheduler) provide(ctx context.Context, batch []*flight) {
	var writes []client.Write
	counts := make([]int, len(batch))
	for i, f := range batch {
		for _, w := range f.plan.Writes() {
			writes = append(writes, w.WithTraceparent(f.trace.traceparent(f.item)))
			counts[i]++
		}
	}
	results, err := s.cfg.Client.CommitQuietly(ctx, writes...)
	for i, f := range batch {
		if len(results) < counts[i] {
			s.undo([]*flight{f}, errors.Join(errors.New("the choice of volumes was not written"), err))
			continue
		}
		ferr := f.plan.Written(results[:counts[i]])
		results = results[counts[i]:]
		if ferr != nil {
			f.trace.end(ferr)
			s.undo([]*flight{f}, ferr)
			continue
		}
		s.mu.Lock()
		f.written = true
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	s.poke()
}

// look finds the pods whose claims have got their volumes, or will not get them.
func (s *Scheduler) look() {
	var lost []*flight
	var why []error
	for key, f := range s.waiting {
		if !f.written {
			continue
		}
		done, err := f.plan.Progress()
		switch {
		case err == nil && !done && s.cfg.Now().Sub(f.decided) > provideTime:
			err = errors.New("timed out waiting for the pod's claims to be bound")
			fallthrough
		case err != nil:
			lost, why = append(lost, f), append(why, err)
		case done:
			f.plan.Release()
			f.plan = nil
			delete(s.waiting, key)
			s.ready = append(s.ready, f)
		}
	}
	for i, f := range lost {
		f.trace.end(why[i])
		s.take(f, why[i])
	}
}

// lister reads objects that concern volumes from the caches.
type lister struct{ c *Caches }

func (l lister) Claim(namespace, name string) (*corev1.PersistentVolumeClaim, bool) {
	return l.c.Claims.Get(namespace, name)
}

func (l lister) Volume(name string) (*corev1.PersistentVolume, bool) {
	return l.c.Volumes.Get("", name)
}

func (l lister) VolumesOfClass(class string) []*corev1.PersistentVolume {
	return l.c.Volumes.ByIndex(byClass, class)
}

func (l lister) Class(name string) (*storagev1.StorageClass, bool) {
	return l.c.StorageClasses.Get("", name)
}
