package etcd

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"go.etcd.io/etcd/server/v3/storage/backend"

	"keelson.dev/services/apiserver/internal/store"
)

// Snapshot is the whole store at one moment. Until it is closed, etcd keeps its pages, so that
// the backend's file grows with each write and is not defragmented.
type Snapshot struct {
	// Revision is a revision up to which the snapshot contains every write.
	Revision store.Revision
	// ClusterID is etcd's id of the cluster.
	ClusterID uint64

	of   backend.Snapshot
	done func()
}

// Snapshot takes a snapshot that contains everything acknowledged before the call.
func (e *Embedded) Snapshot(ctx context.Context) (*Snapshot, error) {
	rev, err := e.Revision(ctx)
	if err != nil {
		return nil, fmt.Errorf("snapshot of etcd: %w", err)
	}
	// A defragmentation would wait for the snapshot, and block all writes meanwhile.
	e.saving.RLock()
	select {
	case <-e.Stopped():
		e.saving.RUnlock()
		return nil, fmt.Errorf("snapshot of etcd: %w", store.ErrClosed)
	default:
	}
	return &Snapshot{
		Revision: rev, ClusterID: uint64(e.etcd.Server.Cluster().ID()),
		of: e.etcd.Server.Backend().Snapshot(), done: e.saving.RUnlock,
	}, nil
}

// Size returns the number of bytes that WriteTo writes.
func (s *Snapshot) Size() int64 { return s.of.Size() + sha256.Size }

// WriteTo writes the snapshot in the format of etcd's own tools: the file, followed by its
// SHA-256.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	hash := sha256.New()
	n, err := s.of.WriteTo(io.MultiWriter(w, hash))
	if err != nil {
		return n, err
	}
	m, err := w.Write(hash.Sum(nil))
	return n + int64(m), err
}

// Close releases the pages.
func (s *Snapshot) Close() error {
	err := s.of.Close()
	s.done()
	return err
}
