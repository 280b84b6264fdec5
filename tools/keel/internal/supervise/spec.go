// Package supervise keeps a cluster's processes running on one machine: a small
// daemon that starts what a file of specs names, restarts what dies, and adopts
// what its predecessor left running.
//
// States of a process: absent → running → (exited: waiting for its back-off) →
// running …; stopping → absent. What is written to disk before it matters: a
// process' pid and start time, right after its start, so that a supervisor that
// was killed finds its children again instead of starting second ones. A pid is
// believed only together with the kernel's start time of that process.
//
// It must never end a process that it did not start or adopt by that record.
package supervise

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Spec is a process to keep running.
type Spec struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Namespace is the network namespace to start in; empty is the host's.
	Namespace string `json:"namespace,omitempty"`
	// Cgroup is where it starts; empty is the supervisor's own.
	Cgroup string `json:"cgroup,omitempty"`
	// Log is the file that its output is appended to.
	Log string `json:"log"`
	// StopOrder: lower ones are stopped first.
	StopOrder int `json:"stopOrder"`
	// Health is the unix socket of its operations listener; empty where it has
	// none (containerd: then Socket, a path or host:port, must accept connections).
	Health string `json:"health,omitempty"`
	Socket string `json:"socket,omitempty"`
	// GRPC and HTTPS are its addresses, for people.
	GRPC  string `json:"grpc,omitempty"`
	HTTPS string `json:"https,omitempty"`
	// Sandboxes is the containerd socket whose pods are stopped once this process
	// was stopped (a node agent's, at `keel down`).
	Sandboxes string `json:"sandboxes,omitempty"`
}

func (s *Spec) hash() string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// Equal tells whether two specs start the same process.
func (s Spec) Equal(other Spec) bool { return s.hash() == other.hash() }

// Dir is where a supervisor keeps its files.
type Dir string

func (d Dir) specs() string  { return filepath.Join(string(d), "processes.json") }
func (d Dir) socket() string { return filepath.Join(string(d), "keel.sock") }
func (d Dir) record(name string) string {
	return filepath.Join(string(d), name+".pid")
}

// WriteSpecs says what to run; a running supervisor follows after a Reload.
func (d Dir) WriteSpecs(specs []Spec) error {
	data, err := json.MarshalIndent(specs, "", "  ")
	if err != nil {
		return err
	}
	tmp := d.specs() + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d.specs())
}

// ReadSpecs reads what to run; none is no error.
func (d Dir) ReadSpecs() ([]Spec, error) {
	data, err := os.ReadFile(d.specs())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var specs []Spec
	return specs, json.Unmarshal(data, &specs)
}

// Status is one process as `keel status` shows it.
type Status struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	GRPC    string `json:"grpc,omitempty"`
	HTTPS   string `json:"https,omitempty"`
	Healthy bool   `json:"healthy"`
	// Reason says why it is not healthy.
	Reason string `json:"reason,omitempty"`
	// Restarts since the supervisor started.
	Restarts int `json:"restarts"`
	// Log is its log file.
	Log string `json:"log,omitempty"`
}
