package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// recordVersion is the version of the record's form.
const recordVersion = 1

// record is what a successor has to know.
type record struct {
	Version int `json:"version"`
	// Resources are the names of those that plug-ins have offered.
	Resources []string                    `json:"resources"`
	Pods      map[types.UID][]*Allocation `json:"pods"`
}

func load(name string) (record, error) {
	var r record
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && r.Version != recordVersion {
		err = fmt.Errorf("version %d, want %d", r.Version, recordVersion)
	}
	if err != nil {
		return record{}, fmt.Errorf("read record of allocated devices: %w; drain the node and remove %s", err, name)
	}
	return r, nil
}

// save replaces the record by the present state, without allocations that are not held yet.
func (r *Registry) save() error {
	r.disk.Lock()
	defer r.disk.Unlock()
	r.mu.Lock()
	out := record{Version: recordVersion, Resources: slices.Sorted(maps.Keys(r.resources)), Pods: map[types.UID][]*Allocation{}}
	for uid, list := range r.pods {
		for _, a := range list {
			if a.Response != nil {
				out.Pods[uid] = append(out.Pods[uid], a)
			}
		}
	}
	data, err := json.Marshal(out)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return replace(r.cfg.Record, data)
}

// replace replaces a file so that it holds the old or the new data after a loss of power.
func replace(name string, data []byte) error {
	file, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
