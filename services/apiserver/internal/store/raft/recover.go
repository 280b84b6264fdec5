package raft

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"

	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"

	"keelson.dev/services/apiserver/internal/store"
)

// recoverySkip is how far a recovery advances the revision: further than the lost members may
// have acknowledged.
const recoverySkip = 1_000_000_000

// Recover makes a store of one member from the disk of a member whose store has permanently
// lost its quorum, and returns the revision from which it continues. The member must not be
// running; afterwards it is opened as usual. If there is no data, Recover does nothing and
// returns 0.
//
// Writes that the lost members acknowledged and this one had not received are lost; writes that
// it had received are kept, even if they were not acknowledged. The disk gets a new id, so that
// the lost members and this one do not recognize each other. An interrupted recovery can be
// repeated.
func Recover(cfg Config) (store.Revision, error) {
	if err := cfg.defaults(); err != nil {
		return 0, fmt.Errorf("recover raft store: %w", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "log.db")); os.IsNotExist(err) {
		return 0, nil
	}
	rev, err := recoverAlone(cfg)
	if err != nil {
		return 0, fmt.Errorf("recover raft store in %s: %w", cfg.Dir, err)
	}
	return rev, nil
}

func recoverAlone(cfg Config) (store.Revision, error) {
	s := &Store{cfg: cfg, log: cfg.Log}
	disk, err := openLog(cfg.Dir, cfg.bolt)
	if err != nil {
		return 0, err
	}
	defer func() { _ = disk.close() }()
	log := &hlog{log: cfg.Log}
	snapshots, err := openSnapshots(cfg.Dir, log)
	if err != nil {
		return 0, err
	}
	known, err := hraft.HasExistingState(disk, disk, snapshots)
	if err != nil {
		return 0, err
	}
	if !known { // it has never been a member
		return 0, nil
	}
	id := rand.Text()
	s.id = serverID(cfg.Name, id)
	m := &recovering{machine: newMachine(cfg.HistoryEvents, cfg.HistoryBytes)}
	defer m.close()
	err = hraft.RecoverCluster(s.library(log), m, disk, disk, snapshots, newTransport(s.id, cfg.Dial), hraft.Configuration{
		Servers: []hraft.Server{{Suffrage: hraft.Voter, ID: s.id, Address: hraft.ServerAddress(s.id)}},
	})
	if err != nil {
		return 0, err
	}
	return m.revision(), disk.rename(id)
}

// recovering is a machine whose snapshot has an advanced revision.
type recovering struct{ *machine }

// Snapshot implements the library's FSM.
func (m *recovering) Snapshot() (hraft.FSMSnapshot, error) {
	m.mu.Lock()
	m.rev += recoverySkip
	m.history.reset(m.rev)
	m.mu.Unlock()
	return m.machine.Snapshot()
}

// rename gives the disk a new id.
func (l *logStore) rename(id string) error {
	return l.db.Update(func(tx *bbolt.Tx) error {
		l.id = id
		return tx.Bucket(stableBucket).Put(diskKey, []byte(id))
	})
}
