package raft

import (
	"context"
	"fmt"
	"io"

	"keelson.dev/services/apiserver/internal/store"
)

// Snapshot is the state at one moment, to be kept elsewhere. While it is held, it costs the
// memory of what has changed since.
type Snapshot struct {
	// Revision is the revision of the state.
	Revision store.Revision
	state    *snapshot
}

// Snapshot takes a snapshot that contains everything acknowledged before the call.
func (s *Store) Snapshot(ctx context.Context) (*Snapshot, error) {
	if err := s.linearize(ctx); err != nil {
		return nil, fmt.Errorf("snapshot of the raft store: %w", err)
	}
	m := s.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Snapshot{Revision: m.rev, state: &snapshot{head: m.head(), keys: m.keys.Clone()}}, nil
}

// WriteTo writes the snapshot. Each call writes the same bytes.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	c := &counted{w: w}
	err := s.state.write(c)
	return c.n, err
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
