// Package host compares what there is on this machine before and after tests that start
// clusters: whatever a deleted cluster leaves behind fails the test run.
//
// It looks for itself and asks no program of Keelson's. Other clusters on the machine
// may come and go meanwhile.
package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Watch knows what there was before the tests, and which clusters they started.
type Watch struct {
	before map[string]bool
	mu     sync.Mutex
	marks  []string
	// patience is how long things may take to go.
	patience time.Duration
}

// Look notes what there is now.
func Look() (*Watch, error) {
	all, err := everything()
	return &Watch{before: all, patience: 30 * time.Second}, err
}

// Run runs a package's tests between two looks, and fails where something is left.
func Run(m *testing.M, w *Watch) int {
	code := m.Run()
	if err := w.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return max(code, 1)
	}
	return code
}

// Mark notes a text that names what the tests make.
func (w *Watch) Mark(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.marks, text) {
		w.marks = append(w.marks, text)
	}
}

// Cluster notes a cluster that the tests have started in a directory, by the directory
// and by the id that is said there.
func (w *Watch) Cluster(home string) {
	w.Mark(home)
	var c struct{ ID string }
	data, err := os.ReadFile(filepath.Join(home, "cluster.json"))
	if err == nil && json.Unmarshal(data, &c) == nil && c.ID != "" {
		w.Mark(c.ID)
	}
}

// Check waits until nothing of the clusters is there any more; what stays is the error.
func (w *Watch) Check() error { return w.check(unnamed) }

func (w *Watch) check(unnamed []string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(w.patience); ; <-tick.C {
		left, err := w.left(unnamed)
		if err == nil && len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("left on this machine:\n  %s", strings.Join(left, "\n  ")))
		}
	}
}

// Gone waits until nothing is named with one of the texts any more.
func (w *Watch) Gone(texts ...string) error {
	return (&Watch{before: map[string]bool{}, marks: texts, patience: w.patience}).check(nil)
}

func (w *Watch) left(unnamed []string) ([]string, error) {
	now, err := everything()
	w.mu.Lock()
	marks := slices.Clone(w.marks)
	w.mu.Unlock()
	var out []string
	for what := range now {
		ours := slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(what, m) })
		if ours || len(marks) > 0 && !w.before[what] && slices.ContainsFunc(unnamed, func(p string) bool { return strings.HasPrefix(what, p) }) {
			out = append(out, what)
		}
	}
	slices.Sort(out)
	return out, err
}

// unnamed are things of which nothing says whose they are.
var unnamed = []string{"network namespace cni-", "file /run/containerd/", "file /var/log/pods/", "file /var/log/containers/"}

// everything is a line for each thing that clusters make.
func everything() (map[string]bool, error) {
	all := map[string]bool{}
	var errs []error
	for _, look := range []func() ([]string, error){namespaces, links, tables, rules, routes, mounts, cgroups, processes, files} {
		lines, err := look()
		errs = append(errs, err)
		for _, l := range lines {
			all[l] = true
		}
	}
	return all, errors.Join(errs...)
}

func namespaces() (out []string, err error) {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		out = append(out, "network namespace "+e.Name())
	}
	return out, err
}

func links() (out []string, err error) {
	all, err := net.Interfaces()
	for _, l := range all {
		out = append(out, "link "+l.Name)
	}
	return out, err
}

func tables() ([]string, error) { return lines("nftables ", "nft", "list", "tables") }

func rules() (out []string, err error) {
	for _, chain := range []string{"filter", "nat"} {
		all, err := lines("rule ", "iptables-nft", "-w", "5", "-t", chain, "-S")
		if err != nil {
			return nil, err
		}
		out = append(out, all...)
	}
	return out, nil
}

func routes() ([]string, error) { return lines("route ", "ip", "-4", "route", "show", "table", "all") }

// lines are those that a program prints.
func lines(prefix, program string, args ...string) (out []string, err error) {
	data, err := exec.Command(program, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	for line := range strings.Lines(string(data)) {
		out = append(out, prefix+strings.TrimSpace(line))
	}
	return out, nil
}

func mounts() (out []string, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 {
			out = append(out, "mount "+f[4])
		}
	}
	return out, err
}

func cgroups() (out []string, _ error) {
	for _, pattern := range []string{"/sys/fs/cgroup/keelson-*", "/sys/fs/cgroup/*/keelson-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			out = append(out, "cgroup "+f)
		}
	}
	return out, nil
}

// processes are named by their command lines, and by what their environment says of a
// cluster. Those of this program's own ancestors may name a home too.
func processes() (out []string, err error) {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		command, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(command) == 0 {
			continue // it has ended, or is the kernel's
		}
		name := string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte(" ")))
		environment, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		for v := range bytes.SplitSeq(environment, []byte{0}) {
			if bytes.HasPrefix(v, []byte("KEELSON_CLUSTER=")) {
				name += " [" + string(v) + "]"
			}
		}
		out = append(out, "process "+e.Name()+" "+name)
	}
	return out, err
}

// files are those where containers' runtimes and keel leave some outside of a home.
func files() (out []string, _ error) {
	for _, root := range []string{"/run/containerd", "/run/keelson", "/var/log/pods", "/var/log/containers", "/var/lib/keelson.d", "/var/lib/cni"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			// Directories that hold nothing belong to nobody.
			if err == nil && !d.IsDir() {
				out = append(out, "file "+path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
