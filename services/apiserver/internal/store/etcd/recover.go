package etcd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/storage/datadir"

	"keelson.dev/services/apiserver/internal/store"
)

// recoverySkip is how far a recovery advances the revision: further than the lost members may
// have acknowledged, so that no revision that a client has seen gets a second meaning.
const recoverySkip = 1_000_000_000

// recovered is the subdirectory of the member's directory in which the new data is created.
const recovered = "recovered"

// Recover makes a cluster of one member from the data of a member whose cluster has permanently
// lost its quorum, and returns the revision from which it continues. The member must not be
// running. Afterwards it is started as usual, and the others are added with empty disks.
//
// Writes that the lost members acknowledged and this one had not received are lost. All history
// is marked compacted, so that watches and caches start over.
//
// The members that are considered lost should not run again with their disks: two of three
// could continue as the old cluster. As soon as one of them and one of the recovered cluster
// reach each other, the lost one stops, and does not start with that disk again. While they
// cannot reach each other, this cannot be detected.
//
// An interrupted recovery is repeated from its beginning, and Start refuses such a directory.
// The previous data is kept in member-before-<time> next to the new.
func Recover(ctx context.Context, c EmbeddedConfig) (store.Revision, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	rev, err := c.recover(ctx)
	if err != nil {
		return 0, fmt.Errorf("recover etcd in %s: %w", c.Dir, err)
	}
	return rev, nil
}

func (c *EmbeddedConfig) recover(ctx context.Context) (store.Revision, error) {
	name := c.Name
	if name == "" {
		name = "default"
	}
	made, old := filepath.Join(c.Dir, recovered), datadir.ToMemberDir(c.Dir)
	if hasLog(c.Dir) {
		if err := os.RemoveAll(made); err != nil {
			return 0, err
		}
		if err := os.Mkdir(made, 0o700); err != nil {
			return 0, err
		}
		if err := c.alone(ctx); err != nil {
			return 0, err
		}
		var disk [4]byte
		_, _ = rand.Read(disk[:])
		seat := seatOf(name, hex.EncodeToString(disk[:]))
		data := filepath.Join(made, "data")
		err := snapshot.NewV3(zap.New(slogCore{log: c.Log})).Restore(snapshot.RestoreConfig{
			SnapshotPath: datadir.ToBackendFileName(c.Dir), SkipHashCheck: true,
			Name: name, OutputDataDir: data, PeerURLs: []string{urlPrefix + seat},
			InitialCluster: name + "=" + urlPrefix + seat, InitialClusterToken: rand.Text(),
			RevisionBump: recoverySkip, MarkCompacted: true,
		})
		if err != nil {
			return 0, err
		}
		lost, err := remembered(c.Dir, c.Peers)
		if err != nil {
			return 0, err
		}
		m := cards{path: filepath.Join(made, memoryFile), mem: memory{Seat: seat, Member: true, Era: time.Now().UnixNano(), Lost: lost}}
		if err := m.save(); err != nil {
			return 0, err
		}
		if err := os.Rename(old, fmt.Sprintf("%s-before-%d", old, time.Now().UnixNano())); err != nil {
			return 0, err
		}
	}
	// From here on, a repetition continues: the old log has been moved aside.
	if from := datadir.ToMemberDir(filepath.Join(made, "data")); exists(from) {
		if err := os.Rename(filepath.Join(made, memoryFile), filepath.Join(c.Dir, memoryFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		if err := os.Rename(from, old); err != nil {
			return 0, err
		}
	}
	if !hasLog(c.Dir) {
		return 0, errors.New("there is no member's data")
	}
	if err := os.RemoveAll(made); err != nil {
		return 0, err
	}
	e, err := Start(ctx, EmbeddedConfig{Name: name, Dir: c.Dir, QuotaBytes: c.QuotaBytes, Log: c.Log})
	if err != nil {
		return 0, err
	}
	defer e.Close()
	return e.Revision(ctx)
}

// remembered returns the addresses of the other members, as far as this one knew them.
func remembered(dir string, pc *PeerConfig) ([]string, error) {
	c := cards{}
	if pc != nil {
		c.configured = pc.Members
	}
	b, err := os.ReadFile(filepath.Join(dir, memoryFile))
	if err == nil {
		err = json.Unmarshal(b, &c.mem)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return c.everywhere(), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// alone runs the member without the others, so that everything in its log is applied to its
// backend.
func (c *EmbeddedConfig) alone(ctx context.Context) error {
	cfg, err := (&EmbeddedConfig{Name: c.Name, Dir: c.Dir, QuotaBytes: c.QuotaBytes, Log: c.Log}).embed(&atomic.Bool{})
	if err != nil {
		return err
	}
	cfg.ForceNewCluster = true
	e, err := startEtcd(ctx, cfg)
	if err != nil {
		return err
	}
	e.Close()
	return nil
}
