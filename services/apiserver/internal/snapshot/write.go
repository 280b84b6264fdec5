package snapshot

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
)

// Lasting is the store of objects that must last: the embedded etcd implements it.
type Lasting interface {
	Snapshot(ctx context.Context) (*etcd.Snapshot, error)
}

// Transient is the store of what changes every second: the raft store implements it.
type Transient interface {
	Snapshot(ctx context.Context) (*raft.Snapshot, error)
}

// write writes a snapshot file. Each store's snapshot is taken as late as possible, so that it
// is held no longer than it takes to write it.
func write(ctx context.Context, to io.Writer, m Manifest, lasting Lasting, transient Transient) (_ Manifest, err error) {
	quick, err := transient.Snapshot(ctx)
	if err != nil {
		return m, err
	}
	size, err := quick.WriteTo(io.Discard)
	if err != nil {
		return m, err
	}
	// The manifest, which is the first file, contains etcd's revision: take etcd's snapshot
	// before anything is written.
	held, err := lasting.Snapshot(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, held.Close()) }()
	m.Format, m.Version, m.Created = format, Version, time.Now().UTC().Truncate(time.Second)
	m.ClusterID = fmt.Sprintf("%016x", held.ClusterID)
	m.EtcdRevision, m.RaftRevision = int64(held.Revision), int64(quick.Revision)
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	a := &archive{w: tar.NewWriter(to), at: m.Created}
	bytes := func(data []byte) func(io.Writer) (int64, error) {
		return func(w io.Writer) (int64, error) { n, err := w.Write(data); return int64(n), err }
	}
	err = a.add(manifestFile, int64(len(head)), bytes(head))
	if err == nil {
		err = a.add(raftFile, size, quick.WriteTo)
	}
	if err == nil {
		err = a.add(etcdFile, held.Size(), held.WriteTo)
	}
	if err == nil {
		err = a.add(sumsFile, int64(len(a.sums)), bytes(a.sums))
	}
	if err == nil {
		err = a.w.Close()
	}
	return m, err
}

// archive is a tar file and the hashes of its parts.
type archive struct {
	w    *tar.Writer
	at   time.Time
	sums []byte
}

func (a *archive) add(name string, size int64, write func(io.Writer) (int64, error)) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: a.at, Format: tar.FormatPAX}
	if err := a.w.WriteHeader(h); err != nil {
		return fmt.Errorf("snapshot: %s: %w", name, err)
	}
	hash := sha256.New()
	if _, err := write(io.MultiWriter(a.w, hash)); err != nil {
		return fmt.Errorf("snapshot: %s: %w", name, err)
	}
	a.sums = fmt.Appendf(a.sums, "%s  %s\n", hex.EncodeToString(hash.Sum(nil)), name)
	return nil
}
