package snapshot

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
)

// Names in a data directory.
const (
	etcdDir      = "etcd"
	raftDir      = "raft"
	restoringDir = "restoring"
	planFile     = "plan.json"
	doneFile     = "restored.json"
	workDir      = "restore-work"
	leftDir      = "restore-left"
	beforePrefix = "before-restore-"
)

// parts are the subdirectories of a data directory that a restore replaces.
var parts = []string{etcdDir, raftDir}

// plan describes a restore. It is in the restoring subdirectory of each data directory until
// that directory is done, and stays there as restored.json.
type plan struct {
	Token   string    `json:"token"`
	File    string    `json:"file"`
	Sum     string    `json:"sum"`
	Name    string    `json:"name"`
	Members []string  `json:"members"`
	Began   time.Time `json:"began"`
	// Ready is true once all data directories have their new data in the restoring
	// subdirectory.
	Ready bool `json:"ready"`
}

// same reports whether two plans are for the same cluster.
func (p *plan) same(other *plan) bool {
	return p.Token == other.Token && p.Sum == other.Sum && slices.Equal(p.Members, other.Members)
}

// readPlan reads a plan. It returns nil if there is none.
func readPlan(path string) (*plan, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &plan{}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// write replaces the file atomically.
func (p *plan) write(path string) error {
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	next := path + ".next"
	if err := create(next, func(w io.Writer) error { _, err := w.Write(append(data, '\n')); return err }); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Unfinished returns an error if a restore to this data directory was interrupted: an apiserver
// must not start on it.
func Unfinished(dataDir string) error {
	_, err := os.Lstat(filepath.Join(dataDir, restoringDir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s: a restore was interrupted: repeat it with the same file", dataDir)
}

// target is one member's data directory.
type target struct {
	name, dir string
	done      bool
}

func (t *target) at(names ...string) string {
	return filepath.Join(append([]string{t.dir}, names...)...)
}

// used reports whether the directory contains data of a store.
func (t *target) used() bool {
	for _, part := range parts {
		if entries, err := os.ReadDir(t.at(part)); err == nil && len(entries) > 0 {
			return true
		}
	}
	return false
}

// lock locks the directory against other restores and running apiservers. The locks last until
// unlock is called or the process ends.
func (t *target) lock() (unlock func(), err error) {
	var held []*os.File
	unlock = func() {
		for _, f := range held {
			_ = f.Close()
		}
	}
	for _, path := range []string{t.dir, t.at(etcdDir, "member", "snap", "db"), t.at(raftDir, "log.db")} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			held = append(held, f)
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			unlock()
			return nil, fmt.Errorf("%s is in use: stop the apiservers first", t.dir)
		}
		if err != nil {
			unlock()
			return nil, err
		}
	}
	return unlock, nil
}

// prepare removes what an interrupted restore left, and writes the plan.
func (t *target) prepare(p plan) error {
	if err := os.RemoveAll(t.at(restoringDir)); err != nil {
		return err
	}
	if err := os.Mkdir(t.at(restoringDir), 0o700); err != nil {
		return err
	}
	p.Name = t.name
	if err := p.write(t.at(restoringDir, planFile)); err != nil {
		return err
	}
	return syncDir(t.dir)
}

// sync flushes the new data and its directories to disk.
func (t *target) sync() error {
	return filepath.WalkDir(t.at(restoringDir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return syncDir(path)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// swap replaces the old data with the new. It continues an interrupted swap, and returns the
// directory with the old data, or "" if there was none. stop is called between steps.
func (t *target) swap(p plan, stop func(step string) error) (before string, err error) {
	aside := t.at(beforePrefix + p.Began.Format("20060102T150405.000Z"))
	for _, part := range parts {
		made := t.at(restoringDir, part)
		if _, err := os.Lstat(made); errors.Is(err, fs.ErrNotExist) {
			continue // it was moved already
		} else if err != nil {
			return "", err
		}
		if err := os.Mkdir(aside, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if err := os.Rename(t.at(part), filepath.Join(aside, part)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := stop("moved " + part + " aside"); err != nil {
			return "", err
		}
		if err := os.Rename(made, t.at(part)); err != nil {
			return "", err
		}
		if err := stop("moved " + part + " in"); err != nil {
			return "", err
		}
		if err := errors.Join(syncDir(aside), syncDir(t.at(restoringDir)), syncDir(t.dir)); err != nil {
			return "", err
		}
	}
	p.Name = t.name
	if err := p.write(t.at(doneFile)); err != nil {
		return "", err
	}
	if err := stop("noted"); err != nil {
		return "", err
	}
	before = aside
	if err := os.Remove(aside); err == nil || errors.Is(err, fs.ErrNotExist) { // there was no old data
		before = ""
	}
	// Rename it first, so that it disappears at once: partly removed, without its plan, it
	// would look like an interrupted restore that cannot be repeated.
	if err := os.RemoveAll(t.at(leftDir)); err != nil {
		return "", err
	}
	if err := os.Rename(t.at(restoringDir), t.at(leftDir)); err != nil {
		return "", err
	}
	if err := stop("done"); err != nil {
		return "", err
	}
	if err := os.RemoveAll(t.at(leftDir)); err != nil {
		return "", err
	}
	return before, syncDir(t.dir)
}

// newToken returns a new token. It begins with the current time, which becomes the era of the
// restored cluster.
func newToken() string { return fmt.Sprintf("%d-%s", time.Now().Unix(), rand.Text()) }

// after returns the revision from which a restored store continues. It is larger than every
// revision written after the snapshot was taken, and than those of an earlier restore from any
// file: the token's time in seconds is multiplied by 2^30, and no store makes that many writes
// in a second.
func after(saved store.Revision, token string) store.Revision {
	second := store.Revision(etcd.EraOf(token) / int64(time.Second))
	return max(saved+revisionSkip, second<<30)
}

func checkToken(token string) error {
	if len(token) > 128 || strings.ContainsAny(token, " \t\n/") {
		return fmt.Errorf("token %q: expected at most 128 characters without whitespace or slashes", token)
	}
	return nil
}
