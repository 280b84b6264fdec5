// Package host compares the machine before and after tests that start clusters: whatever a
// deleted cluster leaves behind fails the test run.
//
// It uses the kernel, iproute2, nftables and the file system, and no program of Keelson's.
// Most of what a cluster creates has the cluster's id or home in its name. What has neither
// counts if it is new and nothing shows that it belongs to another cluster: other clusters
// may exist before the run, and start and end meanwhile.
package host

import (
	"bytes"
	"context"
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
	"time"

	"keelson.dev/e2e/internal/wait"
)

// Watch is the inventory of the machine before the tests, and the clusters that they started.
type Watch struct {
	before map[string]bool
	mu     sync.Mutex
	marks  []string
	// patience is how long Check and Gone wait for things to disappear.
	patience time.Duration
}

// Look takes the inventory.
func Look() (*Watch, error) {
	all, err := everything()
	return &Watch{before: all, patience: 30 * time.Second}, err
}

// Mark notes a text that is part of the names of what the tests create.
func (w *Watch) Mark(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Contains(w.marks, text) {
		w.marks = append(w.marks, text)
	}
}

// Cluster notes a cluster that the tests have started: its home, and the id in the home's
// cluster.json.
func (w *Watch) Cluster(home string) {
	w.Mark(home)
	var c struct{ ID string }
	data, err := os.ReadFile(filepath.Join(home, "cluster.json"))
	if err == nil && json.Unmarshal(data, &c) == nil && c.ID != "" {
		w.Mark(c.ID)
	}
}

// Check waits until the machine has nothing of the tests' clusters; its error lists what stays.
func (w *Watch) Check() error { return w.check(unnamed) }

func (w *Watch) check(unnamed []string) error {
	return wait.Until(context.Background(), w.patience, func(context.Context) error {
		left, err := w.left(unnamed)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left on this machine:\n  %s", strings.Join(left, "\n  "))
		}
		return err
	})
}

// Gone waits until no name on the machine contains one of the texts.
func (w *Watch) Gone(texts ...string) error {
	return (&Watch{before: map[string]bool{}, marks: texts, patience: w.patience}).check(nil)
}

func (w *Watch) left(unnamed []string) ([]string, error) {
	now, err := everything()
	w.mu.Lock()
	marks := slices.Clone(w.marks)
	w.mu.Unlock()
	ours := func(name string) bool {
		return slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(name, m) })
	}
	var out []string
	for what := range now {
		if ours(what) {
			out = append(out, what)
			continue
		}
		i := slices.IndexFunc(unnamed, func(p string) bool { return strings.HasPrefix(what, p) })
		if i >= 0 && len(marks) > 0 && !w.before[what] && !foreign(what, ours) {
			out = append(out, what)
		}
	}
	slices.Sort(out)
	return out, err
}

// unnamed are the beginnings of lines that name no cluster.
var unnamed = []string{"network namespace cni-", "file /run/containerd/", "file /var/log/pods/", "file /var/log/containers/"}

// foreign reports whether a thing without a cluster's name belongs to another cluster or
// program: a socket on which a process listens, a network namespace in which one runs, or
// a log that another cluster lists as its own. A process of the tests' clusters that is
// left is reported itself.
func foreign(what string, ours func(string) bool) bool {
	if name, ok := strings.CutPrefix(what, "network namespace "); ok {
		return inhabited(filepath.Join("/run/netns", name))
	}
	path := strings.TrimPrefix(what, "file ")
	if strings.HasPrefix(path, "/run/") {
		return listens(path)
	}
	if target, err := os.Readlink(path); err == nil {
		path = target // of /var/log/containers
	}
	return listed(path, homes(), ours)
}

// homes are those of all clusters that are registered on this machine.
func homes() (out []string) {
	entries, _ := filepath.Glob("/var/lib/keelson.d/*.json")
	for _, e := range entries {
		var cluster struct{ Home string }
		if data, err := os.ReadFile(e); err == nil && json.Unmarshal(data, &cluster) == nil {
			out = append(out, cluster.Home)
		}
	}
	return out
}

// listed reports whether a node of a home that is not one of ours lists a log: its agent
// keeps a link to the log directory of each of its pods.
func listed(log string, homes []string, ours func(string) bool) bool {
	for _, home := range homes {
		links, _ := filepath.Glob(filepath.Join(home, "nodes", "*", "agent", "log", "*"))
		for _, link := range links {
			if dir, err := os.Readlink(link); err == nil && !ours(home) && strings.HasPrefix(log, dir+"/") {
				return true
			}
		}
	}
	return false
}

// listens reports whether a process listens on a socket, in any network namespace.
func listens(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// inhabited reports whether a process runs in a network namespace.
func inhabited(namespace string) bool {
	want, err := os.Stat(namespace)
	if err != nil {
		return false
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	return slices.ContainsFunc(processes, func(p string) bool {
		got, err := os.Stat(p)
		return err == nil && os.SameFile(want, got)
	})
}

// everything is a line for each thing of a kind that clusters create.
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

// lines are the lines that a program prints, with a prefix.
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

// processes are named by their command lines and by KEELSON_CLUSTER of their environment.
func processes() (out []string, err error) {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		command, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(command) == 0 {
			continue // it has ended, or is a thread of the kernel
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

// files are those outside of a home, in the directories of container runtimes and keel.
func files() (out []string, _ error) {
	for _, root := range []string{"/run/containerd", "/run/keelson", "/var/log/pods", "/var/log/containers", "/var/lib/keelson.d", "/var/lib/cni"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			// A directory without files may belong to any cluster.
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
