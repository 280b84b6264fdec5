package raft

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"keelson.dev/services/apiserver/internal/store"
)

// Saved is a state that was written by Snapshot.WriteTo.
type Saved struct{ state *state }

// ReadSaved reads a state. It returns an error if the data is damaged.
func ReadSaved(from io.Reader) (*Saved, error) {
	s, _, _, err := readSnapshot(from) // drop the changes: no watch resumes from their revisions
	if err != nil {
		return nil, err
	}
	return &Saved{s}, nil
}

// NewSaved returns a state without entries at a revision.
func NewSaved(rev store.Revision) *Saved {
	s := newState()
	s.rev = max(s.rev, rev)
	return &Saved{s}
}

// Revision returns the revision of the state.
func (s *Saved) Revision() store.Revision { return s.state.rev }

// Each calls do for every entry in order of keys, until do returns an error.
func (s *Saved) Each(do func(e store.Entry) error) (err error) {
	s.state.keys.Ascend(func(r *record) bool {
		err = do(r.entry())
		return err == nil
	})
	return err
}

// Add adds an entry of another store. It keeps its revisions, which must not exceed the
// state's. If ttl is positive, it expires that many seconds after the restored store's start.
func (s *Saved) Add(e store.Entry, ttl int64) error {
	if e.ModRevision > s.state.rev || e.CreateRevision > e.ModRevision || e.CreateRevision < 1 {
		return fmt.Errorf("%s has the invalid revision %d, created at %d, in a state at revision %d", e.Key, e.ModRevision, e.CreateRevision, s.state.rev)
	}
	if len(e.Key) > maxKey || len(e.Value) > maxValue || e.Value == nil {
		return fmt.Errorf("%s: cannot store a key of %d and a value of %d bytes", e.Key, len(e.Key), len(e.Value))
	}
	r := &record{key: e.Key, value: slices.Clone(e.Value), mod: e.ModRevision, created: e.CreateRevision}
	if ttl > 0 {
		r.deadline = s.state.now + ttl*1000 + slack
	}
	if s.state.keys.Has(r) {
		return fmt.Errorf("%s was added twice", e.Key)
	}
	s.state.add(r)
	return nil
}

// Jump increases the revision.
func (s *Saved) Jump(by store.Revision) { s.state.rev += by }

// EndEpochs makes the store refuse the leaders of all epochs that it knows, and of the given
// keys: their epochs must be at least the revision rev of the store that grants them.
func (s *Saved) EndEpochs(rev store.Revision, keys ...string) {
	for key := range s.state.epochs {
		s.state.epochs[key] = max(rev, s.state.epochs[key])
	}
	for _, key := range keys {
		if _, known := s.state.epochs[key]; known || len(s.state.epochs) < maxEpochs {
			s.state.epochs[key] = rev
		}
	}
}

// RestoreConfig describes the member whose data to create.
type RestoreConfig struct {
	// Name is the name of the member, and Members those of all members, including this one.
	Name    string
	Members []string
	// Token is new for each cluster. The ids of the members' disks are derived from it.
	Token string
	// Dir is the member's new directory. It must be empty or not exist.
	Dir string
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// restoredIndex and restoredTerm identify an entry that all members have, after which the restored
// log starts.
const restoredIndex, restoredTerm = 1, 1

// Restore creates the data of one member of a new cluster with this state: a snapshot that all
// members have, and an empty log.
func (s *Saved) Restore(c RestoreConfig) (err error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Token == "" || !slices.Contains(c.Members, c.Name) {
		return fmt.Errorf("restore member %q of %v of the raft store: a token is required, and the members must include the member itself", c.Name, c.Members)
	}
	if err := s.restore(c); err != nil {
		return fmt.Errorf("restore member %s of the raft store: %w", c.Name, err)
	}
	return nil
}

func (s *Saved) restore(c RestoreConfig) (err error) {
	if err := makeDir(c.Dir); err != nil {
		return err
	}
	disk, err := openLog(c.Dir, bbolt.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.close()) }()
	if last, err := disk.LastIndex(); err != nil || last != 0 {
		return errors.Join(err, fmt.Errorf("%s is not empty", c.Dir))
	}
	err = disk.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(stableBucket)
		if err := b.Put([]byte("CurrentTerm"), indexKey(restoredTerm)); err != nil {
			return err
		}
		return b.Put(diskKey, []byte(restoredDisk(c.Name, c.Token)))
	})
	if err != nil {
		return err
	}
	members := slices.Clone(c.Members)
	slices.Sort(members)
	var all hraft.Configuration
	for _, name := range members {
		id := serverID(name, restoredDisk(name, c.Token))
		all.Servers = append(all.Servers, hraft.Server{Suffrage: hraft.Voter, ID: id, Address: hraft.ServerAddress(id)})
	}
	snapshots, err := openSnapshots(c.Dir, &hlog{log: c.Log})
	if err != nil {
		return err
	}
	_, unused := hraft.NewInmemTransport("")
	sink, err := snapshots.Create(hraft.SnapshotVersionMax, restoredIndex, restoredTerm, all, restoredIndex, unused)
	if err != nil {
		return err
	}
	head := s.state.head()
	// The log, the clocks of its terms and the sessions of writers are new.
	head.Applied, head.ClockTerm, head.ClockMs, head.Cancelled = restoredIndex, 0, 0, nil
	out := &snapshot{head: head, keys: s.state.keys, done: func() {}}
	return out.Persist(sink)
}

// restoredDisk returns the id of a member's disk in a restored cluster.
func restoredDisk(name, token string) string {
	sum := sha256.Sum256([]byte("keelson raft disk\x00" + token + "\x00" + name))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
}
