package etcd

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"go.etcd.io/etcd/server/v3/storage/backend"

	"keelson.dev/services/apiserver/internal/store"
)

// Snapshot is the whole store as it was at one moment. Until it is closed, etcd
// keeps the pages that it shows, so its file grows with each write, and it is not
// defragmented.
type Snapshot struct {
	// Revision is one up to which every write is in it.
	Revision store.Revision
	// ClusterID is etcd's id of the cluster.
	ClusterID uint64

	of   backend.Snapshot
	done func()
}

// Snapshot takes a snapshot that holds everything acknowledged before the call.
func (e *Embedded) Snapshot(ctx context.Context) (*Snapshot, error) {
	rev, err := e.Revision(ctx)
	if err != nil {
		return nil, fmt.Errorf("snapshot of etcd: %w", err)
	}
	// A defragmentation would wait for the snapshot, and all writes for it.
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

// Size is the number of bytes that WriteTo writes.
func (s *Snapshot) Size() int64 { return s.of.Size() + sha256.Size }

// WriteTo writes what etcd's own tools call a snapshot: the file, and its SHA-256.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	hash := sha256.New()
	n, err := s.of.WriteTo(io.MultiWriter(w, hash))
	if err != nil {
		return n, err
	}
	m, err := w.Write(hash.Sum(nil))
	return n + int64(m), err
}

// Close gives the pages back.
func (s *Snapshot) Close() error {
	err := s.of.Close()
	s.done()
	return err
}
