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

// registry contains one file for each cluster of this machine, so that clusters can be listed,
// and deleted by id when their homes are gone. A directory beside that file (Records) contains
// what their deletion needs.
var registry = "/var/lib/keelson.d"

// Entry is a registered cluster.
type Entry struct {
	ID   string `json:"-"`
	Home string `json:"home"`
}

var idForm = regexp.MustCompile(`^[0-9a-f]{6}$`)

// ValidID returns an error unless id has the form of the ids that keel chooses. Names of links,
// cgroups and files are derived from it.
func ValidID(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("%q is not the id of a cluster: expected six hexadecimal digits, as shown by `keel list`", id)
	}
	return nil
}

// Register adds the cluster to the registry.
func (c *Cluster) Register() error {
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	return c.register()
}

// register is Register while the registry is locked.
func (c *Cluster) register() error {
	data, err := json.Marshal(Entry{Home: c.Home})
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(registry, c.ID+".json"), append(data, '\n'), 0o644)
}

// ledger is the name of the directory, in the data directory of a node's agent, with a link to
// the logs of each of the node's pods.
const ledger = "log"

// Records returns the directory of a node in the registry. It has the form of the data directory
// of the node's agent, but contains only the ledger of its pods' logs.
func Records(id, node string) string { return filepath.Join(registry, id, node) }

// KeepLedgers creates the ledgers of new nodes in the registry, with links to them in the home.
// The logs of pods are outside of the home, and can so be removed even when the home is gone.
// A node that has its ledger in the home keeps it there.
func (c *Cluster) KeepLedgers() error {
	for _, n := range c.Nodes {
		kept, data := filepath.Join(Records(c.ID, n.Name), ledger), c.Path("nodes", n.Name, "agent")
		if err := errors.Join(os.MkdirAll(kept, 0o700), os.MkdirAll(data, 0o755)); err != nil {
			return err
		}
		if err := os.Symlink(kept, filepath.Join(data, ledger)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// registryLock is locked while the registry changes. Only root may open it, because other users
// could lock it forever.
const registryLock = ".lock"

// lockRegistry keeps other processes from changing the registry, and from choosing what a new
// cluster uses, until unlock is called.
func lockRegistry() (unlock func(), err error) {
	path := filepath.Join(registry, registryLock)
	for {
		if err := os.MkdirAll(registry, 0o755); err != nil {
			st, gone := os.Lstat(registry)
			if errors.Is(err, fs.ErrExist) && (gone != nil || st.IsDir()) {
				continue // it was removed while MkdirAll ran
			}
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the registry was removed with its last cluster
		}
		if err != nil {
			return nil, err
		}
		// The holder chooses ports, and does not wait for anything else meanwhile.
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
		f.Close() // it was removed meanwhile, and others lock a new file
	}
}

// registeredClusters returns the clusters of this machine, except the one with the id and those
// whose homes are gone or cannot be read.
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

// Unregister removes a cluster and its records from the registry.
func Unregister(id string) error {
	if err := ValidID(id); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(registry, id)); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(registry, id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Remove the registry with its last cluster, but not while a new one is being chosen.
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	left, err := os.ReadDir(registry)
	if err != nil {
		return err
	}
	// Files are written while the registry is locked: an unfinished one was interrupted.
	left = slices.DeleteFunc(left, func(f fs.DirEntry) bool {
		return strings.HasPrefix(f.Name(), unfinished) && os.Remove(filepath.Join(registry, f.Name())) == nil
	})
	if slices.ContainsFunc(left, func(f fs.DirEntry) bool { return f.Name() != registryLock }) {
		return nil
	}
	if err := os.Remove(filepath.Join(registry, registryLock)); err != nil {
		return err
	}
	// Once the lock file is removed, others may start again in the directory, or remove it.
	if err := os.Remove(registry); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// Registered returns the clusters of this machine.
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
