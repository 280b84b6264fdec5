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

// Saved is a state that is kept elsewhere: what Snapshot.WriteTo wrote.
type Saved struct{ state *state }

// ReadSaved reads a state; bytes that are not one are an error.
func ReadSaved(from io.Reader) (*Saved, error) {
	s, _, _, err := readSnapshot(from) // the changes are of revisions that nobody resumes from
	if err != nil {
		return nil, err
	}
	return &Saved{s}, nil
}

// NewSaved is a state without entries.
func NewSaved(rev store.Revision) *Saved {
	s := newState()
	s.rev = max(s.rev, rev)
	return &Saved{s}
}

// Revision of the state.
func (s *Saved) Revision() store.Revision { return s.state.rev }

// Each calls do with every entry, in the order of keys.
func (s *Saved) Each(do func(e store.Entry) error) (err error) {
	s.state.keys.Ascend(func(r *record) bool {
		err = do(r.entry())
		return err == nil
	})
	return err
}

// Add adds an entry that another store kept. Its revisions stay; the state's must
// not be lower. With ttl, it expires so many seconds after the restored store's
// start.
func (s *Saved) Add(e store.Entry, ttl int64) error {
	if e.ModRevision > s.state.rev || e.CreateRevision > e.ModRevision || e.CreateRevision < 1 {
		return fmt.Errorf("%s of revision %d, created at %d, at revision %d", e.Key, e.ModRevision, e.CreateRevision, s.state.rev)
	}
	if len(e.Key) > maxKey || len(e.Value) > maxValue || e.Value == nil {
		return fmt.Errorf("%s: %d bytes of key and %d of value cannot be stored", e.Key, len(e.Key), len(e.Value))
	}
	r := &record{key: e.Key, value: slices.Clone(e.Value), mod: e.ModRevision, created: e.CreateRevision}
	if ttl > 0 {
		r.deadline = s.state.now + ttl*1000 + slack
	}
	if s.state.keys.Has(r) {
		return fmt.Errorf("%s is there twice", e.Key)
	}
	s.state.add(r)
	return nil
}

// Jump makes the revision grow.
func (s *Saved) Jump(by store.Revision) { s.state.rev += by }

// EndEpochs makes writers of all epochs that are known here, and of the keys
// given, be refused: their epochs count from the revision rev of the store that
// grants them.
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

// RestoreConfig says which member's data to make.
type RestoreConfig struct {
	// Name of the member, and those of all, this one among them.
	Name    string
	Members []string
	// Token is new for each cluster: the members' ids come from it.
	Token string
	// Dir is the member's new directory; it must not exist or be empty.
	Dir string
	Log *slog.Logger
}

// The restored log begins after this entry, which all members have.
const restoredIndex, restoredTerm = 1, 1

// Restore makes the data of a member of a new cluster that begins with the state:
// a snapshot that all members have, and no log.
func (s *Saved) Restore(c RestoreConfig) (err error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Token == "" || !slices.Contains(c.Members, c.Name) {
		return fmt.Errorf("restore member %q of %v of the raft store: a token and the member's own name are needed", c.Name, c.Members)
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
	_, nobody := hraft.NewInmemTransport("")
	sink, err := snapshots.Create(hraft.SnapshotVersionMax, restoredIndex, restoredTerm, all, restoredIndex, nobody)
	if err != nil {
		return err
	}
	head := s.state.head()
	// The log, its terms' clocks and the sessions of writers are new ones.
	head.Applied, head.ClockTerm, head.ClockMs, head.Cancelled = restoredIndex, 0, 0, nil
	out := &snapshot{head: head, keys: s.state.keys, done: func() {}}
	return out.Persist(sink)
}

// restoredDisk is the id of the disk of a member of a restored cluster.
func restoredDisk(name, token string) string {
	sum := sha256.Sum256([]byte("keelson raft disk\x00" + token + "\x00" + name))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
}
