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

// parts of a data directory that a restore replaces.
var parts = []string{etcdDir, raftDir}

// plan is what a restore is about to do. It lies in each directory until that one
// is done, and stays there as restored.json.
type plan struct {
	Token   string    `json:"token"`
	File    string    `json:"file"`
	Sum     string    `json:"sum"`
	Name    string    `json:"name"`
	Members []string  `json:"members"`
	Began   time.Time `json:"began"`
	// Ready says that all directories have their new data beside the old.
	Ready bool `json:"ready"`
}

// same tells whether two plans are for the same cluster.
func (p *plan) same(other *plan) bool {
	return p.Token == other.Token && p.Sum == other.Sum && slices.Equal(p.Members, other.Members)
}

// readPlan reads a plan; nil if there is none.
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

// write replaces the file in one step.
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

// Unfinished is an error if a restore of this data directory was interrupted: an
// apiserver must not start on it.
func Unfinished(dataDir string) error {
	_, err := os.Lstat(filepath.Join(dataDir, restoringDir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s: a restore was interrupted: repeat it, with the same file", dataDir)
}

// target is one member's data directory.
type target struct {
	name, dir string
	done      bool
}

func (t *target) at(names ...string) string {
	return filepath.Join(append([]string{t.dir}, names...)...)
}

// used tells whether there is data.
func (t *target) used() bool {
	for _, part := range parts {
		if entries, err := os.ReadDir(t.at(part)); err == nil && len(entries) > 0 {
			return true
		}
	}
	return false
}

// lock keeps others out: another restore, and whoever runs on the data. The locks
// end with the returned function, or with this process.
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

// prepare begins anew: what an interrupted restore left goes, and the plan is
// written.
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

// sync makes the new data last, names included.
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

// swap puts the new data in the place of the old. It goes on where an earlier one
// was interrupted, and returns where the old data is, if there was any. stop is
// called between its steps.
func (t *target) swap(p plan, stop func(step string) error) (before string, err error) {
	aside := t.at(beforePrefix + p.Began.Format("20060102T150405.000Z"))
	for _, part := range parts {
		made := t.at(restoringDir, part)
		if _, err := os.Lstat(made); errors.Is(err, fs.ErrNotExist) {
			continue // it is in its place already
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
	if err := os.Remove(aside); err == nil || errors.Is(err, fs.ErrNotExist) { // nothing was there
		before = ""
	}
	// In one step: without its plan it would stand in the way for ever.
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

// newToken makes a token; the time that it begins with is the restored cluster's era.
func newToken() string { return fmt.Sprintf("%d-%s", time.Now().Unix(), rand.Text()) }

// after is where the revisions of a restored store go on: beyond all that came after
// the snapshot, and beyond those of a restore before, from whichever file. A second is
// 2^30 revisions long: no store makes that many writes in it.
func after(saved store.Revision, token string) store.Revision {
	second := store.Revision(etcd.EraOf(token) / int64(time.Second))
	return max(saved+revisionSkip, second<<30)
}

func checkToken(token string) error {
	if len(token) > 128 || strings.ContainsAny(token, " \t\n/") {
		return fmt.Errorf("token %q: want up to 128 characters without spaces and slashes", token)
	}
	return nil
}
