package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"keelson.dev/services/apiserver/internal/store"
)

// File is the database file of an etcd that is not running: a snapshot without the hash at its
// end. Callers must have verified that hash, because etcd's database does not tolerate damage.
type File struct {
	db *bbolt.DB
	// newest maps the existing keys to the revisions of their last writes, as encoded in the
	// file.
	newest map[string]revisionKey
	rev    store.Revision
}

// revisionKey is a key of etcd's database: an encoded revision.
type revisionKey [revisionSize]byte

// revisionSize is the length of an encoded revision. That of a deletion is one byte longer.
const revisionSize = 17

// FileEntry is an entry of a File.
type FileEntry struct {
	store.Entry
	// Lease is the id of the lease with which the entry expires, or 0.
	Lease int64

	raw []byte
}

// OpenFile opens a file and reads its keys.
func OpenFile(path string) (*File, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("read etcd's file: %w", err)
	}
	f := &File{db: db, newest: map[string]revisionKey{}}
	err = f.each(func(k []byte, kv *mvccpb.KeyValue, _ []byte) error {
		f.rev = store.Revision(binary.BigEndian.Uint64(k))
		if mvcc.IsTombstone(k) {
			delete(f.newest, string(kv.Key))
			return nil
		}
		f.newest[string(kv.Key)] = revisionKey(k)
		return nil
	})
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("read etcd's file: %w", err)
	}
	return f, nil
}

// each calls do for all revisions, oldest first.
func (f *File) each(do func(k []byte, kv *mvccpb.KeyValue, raw []byte) error) error {
	return f.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(schema.Key.Name())
		if b == nil {
			return errors.New("it contains no keys: it is not a database of etcd 3")
		}
		kv := &mvccpb.KeyValue{}
		return b.ForEach(func(k, v []byte) error {
			if len(k) != revisionSize && !mvcc.IsTombstone(k) {
				return fmt.Errorf("it contains a revision of %d bytes", len(k))
			}
			proto.Reset(kv)
			if err := proto.Unmarshal(v, kv); err != nil {
				return fmt.Errorf("revision %d: %w", binary.BigEndian.Uint64(k), err)
			}
			return do(k, kv, v)
		})
	})
}

// Revision returns the revision of the newest write.
func (f *File) Revision() store.Revision { return f.rev }

// Close closes the file.
func (f *File) Close() error { return f.db.Close() }

// Each calls do for every existing entry, in order of revisions. The entry is only valid until
// do returns.
func (f *File) Each(do func(e FileEntry) error) error {
	return f.each(func(k []byte, kv *mvccpb.KeyValue, raw []byte) error {
		if len(k) != revisionSize || len(kv.Key) == 0 || f.newest[string(kv.Key)] != revisionKey(k) {
			return nil
		}
		return do(FileEntry{Entry: entry(kv), Lease: kv.Lease, raw: raw})
	})
}

// rewriteBatch is how many entries are written in one transaction.
const rewriteBatch = 10_000

// Rewrite writes the entries for which keep returns true to a new file at revision rev. They
// keep their revisions, and everything before rev is marked compacted. The key mark is written
// with the given value at rev. Nothing else is copied: no history, members, alarms, users or
// versions.
func (f *File) Rewrite(path string, rev store.Revision, mark string, value []byte, keep func(e FileEntry) (bool, error)) (err error) {
	if rev <= f.rev {
		return fmt.Errorf("revision %d is not later than that of the file, %d", rev, f.rev)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	to, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	w := &rewriter{db: to}
	defer w.end()
	leases := map[int64]bool{}
	err = f.Each(func(e FileEntry) error {
		if e.Key == mark {
			return nil
		}
		kept, err := keep(e)
		if err != nil || !kept {
			return err
		}
		if e.Lease != 0 {
			leases[e.Lease] = true
		}
		k := f.newest[e.Key]
		return w.put(schema.Key.Name(), k[:], e.raw)
	})
	if err != nil {
		return err
	}
	if err := f.leases(leases, func(k, v []byte) error { return w.put(schema.Lease.Name(), k, v) }); err != nil {
		return err
	}
	at := mvcc.RevToBytes(mvcc.Revision{Main: int64(rev)}, mvcc.NewRevBytes())
	raw, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(mark), Value: value, CreateRevision: int64(rev), ModRevision: int64(rev), Version: 1})
	if err != nil {
		return err
	}
	if err := w.put(schema.Key.Name(), at[:revisionSize], raw); err != nil {
		return err
	}
	if err := w.put(schema.Meta.Name(), schema.ScheduledCompactKeyName, at[:revisionSize]); err != nil {
		return err
	}
	if err := w.commit(); err != nil {
		return err
	}
	return to.Sync()
}

// leases calls do for the wanted leases of the file.
func (f *File) leases(wanted map[int64]bool, do func(k, v []byte) error) error {
	return f.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(schema.Lease.Name())
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			if len(k) != 8 || !wanted[int64(binary.BigEndian.Uint64(k))] {
				return nil
			}
			return do(k, v)
		})
	})
}

// rewriter writes to a new database.
type rewriter struct {
	db *bbolt.DB
	tx *bbolt.Tx
	n  int
}

func (w *rewriter) put(bucket, k, v []byte) (err error) {
	if w.n == rewriteBatch {
		if err := w.commit(); err != nil {
			return err
		}
	}
	if w.tx == nil {
		if w.tx, err = w.db.Begin(true); err != nil {
			return err
		}
	}
	w.n++
	b, err := w.tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return err
	}
	b.FillPercent = 0.9 // it only grows at its end
	return b.Put(k, v)
}

func (w *rewriter) commit() error {
	tx := w.tx
	w.tx, w.n = nil, 0
	if tx == nil {
		return nil
	}
	return tx.Commit()
}

// end rolls back what was not committed.
func (w *rewriter) end() {
	if w.tx != nil {
		_ = w.tx.Rollback()
	}
}
