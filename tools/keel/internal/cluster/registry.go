package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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
	if err := os.MkdirAll(registry, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(Entry{Home: c.Home})
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(registry, c.ID+".json"), append(data, '\n'), 0o644)
}

// Unregister forgets a cluster.
func Unregister(id string) error {
	if err := os.Remove(filepath.Join(registry, id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_ = os.Remove(registry) // with the last of them
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
