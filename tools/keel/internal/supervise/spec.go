// Package supervise keeps a cluster's processes running on one machine. A small daemon starts
// the processes that a file of specifications lists, restarts those that end, and adopts those
// that its predecessor left running.
//
// States of a process: absent → running → (exited: waiting for its back-off) → running …;
// stopping → absent.
//
// Failures: right after the start of a process, the daemon writes its pid and start time to
// disk, so that after a kill the next daemon finds the process instead of starting a second
// one. A pid counts only if the kernel reports the same start time for it.
//
// Invariant: the daemon never ends a process that it did not start, or adopt by that record.
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

// Spec specifies a process to keep running.
type Spec struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Namespace is the network namespace in which to start the process. If it is empty, the
	// process starts in the host's.
	Namespace string `json:"namespace,omitempty"`
	// Cgroup is the cgroup in which to start the process. If it is empty, the process starts in
	// the supervisor's.
	Cgroup string `json:"cgroup,omitempty"`
	// Log is the file to which the process's output is appended.
	Log string `json:"log"`
	// StopOrder is the order in which processes are stopped, lowest first.
	StopOrder int `json:"stopOrder"`
	// Health is the unix socket of the process's operations listener. It is empty if the
	// process has none, as containerd. Then Socket, a path or host:port, must accept
	// connections.
	Health string `json:"health,omitempty"`
	Socket string `json:"socket,omitempty"`
	// GRPC and HTTPS are the process's addresses, for people.
	GRPC  string `json:"grpc,omitempty"`
	HTTPS string `json:"https,omitempty"`
	// Sandboxes is the socket of the containerd whose pods are stopped after this process has
	// stopped. It is set for node agents.
	Sandboxes string `json:"sandboxes,omitempty"`
}

// hash returns a short digest of the specification.
func (s *Spec) hash() string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // cannot happen: Spec contains only strings and numbers
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// Equal reports whether two specifications start the same process.
func (s Spec) Equal(other Spec) bool { return s.hash() == other.hash() }

// Dir is the directory with a supervisor's files.
type Dir string

func (d Dir) specs() string  { return filepath.Join(string(d), "processes.json") }
func (d Dir) socket() string { return filepath.Join(string(d), "keel.sock") }
func (d Dir) record(name string) string {
	return filepath.Join(string(d), name+".pid")
}

// WriteSpecs writes the specifications of the processes to run. A running supervisor follows
// them after a Reload.
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

// ReadSpecs returns the specifications of the processes to run. It returns none if there is no
// file.
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

// Status is the state of one process as `keel status` shows it.
type Status struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	GRPC    string `json:"grpc,omitempty"`
	HTTPS   string `json:"https,omitempty"`
	Healthy bool   `json:"healthy"`
	// Reason explains why the process is not healthy.
	Reason string `json:"reason,omitempty"`
	// Restarts is the number of restarts since the supervisor started.
	Restarts int `json:"restarts"`
	// Log is the path of the process's log file.
	Log string `json:"log,omitempty"`
}
