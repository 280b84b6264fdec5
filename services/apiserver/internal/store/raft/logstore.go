package raft

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store/failpoint"
)

// logStore keeps the log, the term and the vote in one bbolt file. Each call is a single
// transaction, which is on disk when the call returns.
type logStore struct {
	db *bbolt.DB
	// id is the disk's id. It is created and lost together with the file, and so are the votes.
	id string
	// failed, if set, is called when a write fails. It does not return.
	failed func(error)

	mu sync.Mutex
	// voteTerm is the term of a vote whose candidate has not been set yet.
	voteTerm []byte
}

var (
	logBucket    = []byte("log")
	stableBucket = []byte("stable")
	diskKey      = []byte("KeelsonDisk")
)

// The library saves a vote in two steps: the term, then the candidate. A crash between them
// would leave the new term with the candidate of an older vote, which would then be granted a
// new vote without a check of its log.
const (
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
)

// errNotFound is recognized by the library by its text.
var errNotFound = errors.New("not found")

// openLog opens the log in dir. It creates one if there is none.
func openLog(dir string, options bbolt.Options) (*logStore, error) {
	path := filepath.Join(dir, "log.db")
	options.Timeout = 5 * time.Second
	options.NoFreelistSync = true // rebuilt when the file is opened
	options.FreelistType = bbolt.FreelistMapType
	db, err := bbolt.Open(path, 0o600, &options)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	l := &logStore{db: db}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucketIfNotExists(logBucket); err != nil {
			return err
		}
		b, err := tx.CreateBucketIfNotExists(stableBucket)
		if err != nil {
			return err
		}
		if l.id = string(b.Get(diskKey)); l.id != "" {
			return nil
		}
		l.id = rand.Text()
		return b.Put(diskKey, []byte(l.id))
	})
	if err == nil {
		err = syncDir(dir) // the file's name
	}
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return l, nil
}

// syncDir syncs the entries of a directory to disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// update runs one transaction, in which the failpoint named point may fail. If it fails, the
// member ends: the transaction may be on disk nevertheless, or the library may continue as if
// it had succeeded, and only a restart finds out.
func (l *logStore) update(point string, f func(*bbolt.Tx) error) error {
	err := l.transact(point, f)
	if err != nil && !errors.Is(err, bolterrors.ErrDatabaseNotOpen) && l.failed != nil {
		l.failed(err)
	}
	return err
}

func (l *logStore) transact(point string, f func(*bbolt.Tx) error) error {
	fail := failpoint.At(point)
	if fail == failpoint.Refuse || fail == failpoint.LoseRequest {
		return fmt.Errorf("%s: %w", point, errLost)
	}
	if err := l.db.Update(f); err != nil {
		return err
	}
	if fail == failpoint.LoseAnswer {
		return fmt.Errorf("%s: %w", point, errLost)
	}
	return nil
}

func (l *logStore) close() error { return l.db.Close() }

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// end returns the first or last index, or 0 if the log is empty.
func (l *logStore) end(key func(c *bbolt.Cursor) []byte) (index uint64, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		if k := key(tx.Bucket(logBucket).Cursor()); k != nil {
			index = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	return index, err
}

// FirstIndex implements the library's LogStore.
func (l *logStore) FirstIndex() (uint64, error) {
	return l.end(func(c *bbolt.Cursor) []byte { k, _ := c.First(); return k })
}

// LastIndex implements the library's LogStore.
func (l *logStore) LastIndex() (uint64, error) {
	return l.end(func(c *bbolt.Cursor) []byte { k, _ := c.Last(); return k })
}

// GetLog implements the library's LogStore.
func (l *logStore) GetLog(index uint64, to *hraft.Log) error {
	return l.db.View(func(tx *bbolt.Tx) error {
		data := tx.Bucket(logBucket).Get(indexKey(index))
		if data == nil {
			return hraft.ErrLogNotFound
		}
		e := &raftv1.Entry{}
		if err := proto.Unmarshal(data, e); err != nil {
			return fmt.Errorf("log entry %d: %w", index, err)
		}
		fromEntry(e, to)
		return nil
	})
}

// StoreLog implements the library's LogStore.
func (l *logStore) StoreLog(e *hraft.Log) error { return l.StoreLogs([]*hraft.Log{e}) }

// StoreLogs implements the library's LogStore.
func (l *logStore) StoreLogs(logs []*hraft.Log) error {
	return l.update(failpoint.RaftLog, func(tx *bbolt.Tx) error {
		b := tx.Bucket(logBucket)
		b.FillPercent = 0.9 // it only grows at its end
		for _, e := range logs {
			data, err := proto.Marshal(toEntry(e))
			if err != nil {
				return err
			}
			if err := b.Put(indexKey(e.Index), data); err != nil {
				return err
			}
		}
		return nil
	})
}

// deletedAtOnce bounds the entries that one transaction deletes, because appends wait for it.
const deletedAtOnce = 2000

// DeleteRange implements the library's LogStore. Entries at the end of the log are deleted in
// one transaction, so that a crash leaves no gap, and those at the start in several.
func (l *logStore) DeleteRange(from, to uint64) error {
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	from, to = max(from, first), min(to, last)
	step := uint64(deletedAtOnce)
	if to == last {
		step = last - first + 1
	}
	for ; from != 0 && from <= to; from += step {
		if err := l.deleteEach(from, min(to, from+step-1)); err != nil {
			return err
		}
	}
	return nil
}

// deleteEach deletes entries by key. A cursor would walk over all the pages that it has
// emptied, again for each entry.
func (l *logStore) deleteEach(from, to uint64) error {
	return l.update(failpoint.RaftLog, func(tx *bbolt.Tx) error {
		b := tx.Bucket(logBucket)
		for i := from; i <= to; i++ {
			if err := b.Delete(indexKey(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Set implements the library's StableStore.
func (l *logStore) Set(key, value []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.update(failpoint.RaftVote, func(tx *bbolt.Tx) error {
		b := tx.Bucket(stableBucket)
		if string(key) == keyVoteCandidate && l.voteTerm != nil {
			if err := b.Put([]byte(keyVoteTerm), l.voteTerm); err != nil {
				return err
			}
		}
		return b.Put(key, value)
	}); err != nil {
		return err
	}
	if string(key) == keyVoteCandidate {
		l.voteTerm = nil
	}
	return nil
}

// Get implements the library's StableStore.
func (l *logStore) Get(key []byte) (value []byte, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(stableBucket).Get(key)
		if v == nil {
			return errNotFound
		}
		value = append([]byte{}, v...)
		return nil
	})
	return value, err
}

// SetUint64 implements the library's StableStore. The term of a vote is held back until its
// candidate is set.
func (l *logStore) SetUint64(key []byte, value uint64) error {
	if string(key) == keyVoteTerm {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.voteTerm = indexKey(value)
		return nil
	}
	return l.Set(key, indexKey(value))
}

// GetUint64 implements the library's StableStore.
func (l *logStore) GetUint64(key []byte) (uint64, error) {
	v, err := l.Get(key)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("%s has %d bytes, expected 8", key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// snapshotStore is the library's FileSnapshotStore, which does not sync the entries of a
// snapshot's own directory.
type snapshotStore struct {
	*hraft.FileSnapshotStore
	dir string
}

func openSnapshots(dir string, log *hlog) (*snapshotStore, error) {
	s, err := hraft.NewFileSnapshotStoreWithLogger(dir, 2, log.logger())
	if err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	return &snapshotStore{s, filepath.Join(dir, "snapshots")}, syncDir(dir)
}

// Create implements the library's SnapshotStore.
func (s *snapshotStore) Create(version hraft.SnapshotVersion, index, term uint64, c hraft.Configuration, at uint64, t hraft.Transport) (hraft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, c, at, t)
	if err != nil {
		return nil, err
	}
	return &snapshotSink{sink, filepath.Join(s.dir, sink.ID())}, nil
}

type snapshotSink struct {
	hraft.SnapshotSink
	dir string
}

// Close completes the snapshot. After that, the log that it replaces may be deleted.
func (s *snapshotSink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	return syncDir(s.dir)
}

var _ io.WriteCloser = (*snapshotSink)(nil)
