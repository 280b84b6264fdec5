package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// registry holds one file for each cluster of this machine, so that they can be
// listed, and deleted by their ids when their homes are gone.
var registry = "/var/lib/keelson.d"

// Entry is a cluster of this machine.
type Entry struct {
	ID   string `json:"-"`
	Home string `json:"home"`
}

var idForm = regexp.MustCompile(`^[0-9a-f]{6}$`)

// ValidID fails unless an id has the form of those that keel chooses: names of
// links, cgroups and files are made of it.
func ValidID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("%q is not the id of a cluster: want six hexadecimal digits, as `keel list` shows them", id)
	}
	return nil
}

// Register notes that the cluster is on this machine.
func (c *Cluster) Register() error {
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	return c.register()
}

// register does so while the registry is locked.
func (c *Cluster) register() error {
	data, err := json.Marshal(Entry{Home: c.Home})
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(registry, c.ID+".json"), append(data, '\n'), 0o644)
}

// registryLock is locked while the registry changes. Only root may open it: others could
// hold it for ever.
const registryLock = ".lock"

// lockRegistry keeps others from changing the registry, and from choosing what a new
// cluster has, until unlock is called.
func lockRegistry() (unlock func(), err error) {
	path := filepath.Join(registry, registryLock)
	for {
		if err := os.MkdirAll(registry, 0o755); err != nil {
			st, gone := os.Lstat(registry)
			if errors.Is(err, fs.ErrExist) && (gone != nil || st.IsDir()) {
				continue // it was removed while MkdirAll looked at it
			}
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the registry was removed with the last cluster
		}
		if err != nil {
			return nil, err
		}
		// The holder chooses ports, and waits for nothing meanwhile.
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		locked, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(locked, now) {
			return func() { f.Close() }, nil
		}
		f.Close() // removed meanwhile: what others lock is another file
	}
}

// registeredClusters are the clusters of this machine, without the one of the id; those
// whose homes are gone or cannot be read are left out.
func registeredClusters(id string) ([]*Cluster, error) {
	entries, err := Registered()
	if err != nil {
		return nil, err
	}
	var out []*Cluster
	for _, e := range entries {
		if c, err := Load(e.Home); err == nil && c.ID == e.ID && c.ID != id {
			out = append(out, c)
		}
	}
	return out, nil
}

// Unregister forgets a cluster.
func Unregister(id string) error {
	if err := os.Remove(filepath.Join(registry, id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The registry goes with the last of them, and not while a new one is being chosen.
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	left, err := os.ReadDir(registry)
	if err != nil {
		return err
	}
	// Files are written under the lock: what is unfinished now was interrupted.
	left = slices.DeleteFunc(left, func(f fs.DirEntry) bool {
		return strings.HasPrefix(f.Name(), unfinished) && os.Remove(filepath.Join(registry, f.Name())) == nil
	})
	if slices.ContainsFunc(left, func(f fs.DirEntry) bool { return f.Name() != registryLock }) {
		return nil
	}
	if err := os.Remove(filepath.Join(registry, registryLock)); err != nil {
		return err
	}
	// Without the lock's file, others may begin anew in the directory, or remove it.
	if err := os.Remove(registry); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// Registered are the clusters of this machine.
func Registered() ([]Entry, error) {
	files, err := os.ReadDir(registry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || ValidID(id) != nil {
			continue
		}
		e := Entry{ID: id}
		data, err := os.ReadFile(filepath.Join(registry, f.Name()))
		if err == nil {
			err = json.Unmarshal(data, &e)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", filepath.Join(registry, f.Name()), err)
		}
		out = append(out, e)
	}
	return out, nil
}
