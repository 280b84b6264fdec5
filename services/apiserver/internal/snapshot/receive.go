package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	snapshotv1 "keelson.dev/proto/keelson/snapshot/v1"
)

// Saved describes a snapshot that was saved.
type Saved struct {
	File         string        `json:"file"`
	Bytes        int64         `json:"bytes"`
	EtcdRevision int64         `json:"etcdRevision"`
	RaftRevision int64         `json:"raftRevision"`
	Took         time.Duration `json:"tookNanoseconds"`
}

const (
	// saveTries is how often a save is attempted while apiservers are unavailable; saveWait is
	// the pause between attempts.
	saveTries = 4
	saveWait  = 500 * time.Millisecond
)

// Save writes a snapshot of a running cluster to a file with mode 0600, replacing an existing
// one. The file is complete and flushed to disk, or not written at all. (A process that is
// killed leaves .NAME.partial-…, which restore does not accept.)
func Save(ctx context.Context, conn grpc.ClientConnInterface, path string) (out Saved, err error) {
	began := time.Now()
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".partial-*")
	if err != nil {
		return out, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // it may have been closed already
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	var end *snapshotv1.SaveEnd
	for try := 1; ; try++ {
		if end, err = receive(ctx, conn, f); err == nil {
			break
		}
		if code := status.Code(err); try == saveTries || code != codes.Unavailable && code != codes.ResourceExhausted {
			return out, err
		}
		select {
		case <-time.After(saveWait):
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
	if err := f.Sync(); err != nil {
		return out, err
	}
	if err := f.Close(); err != nil {
		return out, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return out, err
	}
	if err := syncDir(dir); err != nil {
		return out, err
	}
	return Saved{File: path, Bytes: end.Size, EtcdRevision: end.EtcdRevision, RaftRevision: end.RaftRevision, Took: time.Since(began)}, nil
}

// receive writes one stream to the file, from its start.
func receive(ctx context.Context, conn grpc.ClientConnInterface, f *os.File) (*snapshotv1.SaveEnd, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := snapshotv1.NewSnapshotServiceClient(conn).Save(ctx, &snapshotv1.SaveRequest{})
	if err != nil {
		return nil, err
	}
	hash, size := sha256.New(), int64(0)
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, status.Error(codes.Unavailable, "the snapshot was cut off")
		}
		if err != nil {
			return nil, err
		}
		if m.End != nil {
			if m.End.Size != size || !bytes.Equal(m.End.Sha256, hash.Sum(nil)) {
				return nil, fmt.Errorf("the snapshot was damaged in transit: received %d bytes of %d, or their hash differs", size, m.End.Size)
			}
			return m.End, nil
		}
		if _, err := f.Write(m.Data); err != nil {
			return nil, err
		}
		hash.Write(m.Data)
		size += int64(len(m.Data))
	}
}

// syncDir flushes the entries of a directory to disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
