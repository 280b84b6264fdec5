// Package cgroup manages the cgroups of pods: one per quality-of-service class under the
// node's root, and under that one per pod, which holds the pod's containers. Differences
// between cgroup v1 and v2 are confined to this package.
//
// It must never touch a cgroup outside the node's root.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/pod"
)

// Hierarchy is the part of the machine's cgroups that belongs to the node.
type Hierarchy struct {
	root    string
	unified string            // mount point of v2, if v2 is in charge
	v1      map[string]string // mount point by controller
	podPIDs int64             // limit of each pod's processes; 0 means none
}

// controllers are the controllers of pods' cgroups. Limits are set on the first three; the
// cgroups of the others are only created and removed.
var controllers = []string{"cpu", "memory", "pids", "cpuset", "cpuacct", "blkio", "devices", "freezer", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc", "systemd"}

// Detect finds the machine's cgroups. root is the node's own cgroup, for instance
// "/keelson".
func Detect(root string) (*Hierarchy, error) {
	root = path.Clean("/" + root)
	if root == "/" {
		return nil, errors.New("cgroup root: the node needs a cgroup of its own, not /")
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	defer f.Close()
	h := &Hierarchy{root: root, v1: map[string]string{}}
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		before, after, ok := strings.Cut(scanner.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			if h.unified == "" {
				h.unified = left[4]
			}
		case "cgroup":
			for _, o := range strings.Split(right[2], ",") {
				name := strings.TrimPrefix(o, "name=")
				if slices.Contains(controllers, name) && h.v1[name] == "" {
					h.v1[name] = left[4]
				}
			}
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	if h.v1["memory"] != "" && h.v1["cpu"] != "" {
		h.unified = "" // a hybrid machine: v1 is in charge
		return h, nil
	}
	if h.unified == "" {
		return nil, errors.New("cgroups: neither v2 nor v1's cpu and memory are mounted")
	}
	h.v1 = nil
	return h, nil
}

// Unified reports whether cgroup v2 is in charge.
func (h *Hierarchy) Unified() bool { return h.unified != "" }

// class returns the cgroup of a QoS class.
func (h *Hierarchy) class(qos corev1.PodQOSClass) string {
	switch qos {
	case corev1.PodQOSGuaranteed:
		return h.root
	case corev1.PodQOSBurstable:
		return path.Join(h.root, "burstable")
	}
	return path.Join(h.root, "besteffort")
}

// Pod returns the path of a pod's cgroup, in the form of CRI's cgroup_parent.
func (h *Hierarchy) Pod(p *corev1.Pod) string {
	return path.Join(h.class(pod.QOS(p)), "pod"+string(p.UID))
}

// dirs returns the directories of a cgroup by v1 controller, or its only directory under ""
// with v2.
func (h *Hierarchy) dirs(group string) map[string]string {
	if h.Unified() {
		return map[string]string{"": filepath.Join(h.unified, group)}
	}
	out := map[string]string{}
	for name, mount := range h.v1 {
		out[name] = filepath.Join(mount, group)
	}
	return out
}

// EnsurePod creates a pod's cgroup and sets its limits.
func (h *Hierarchy) EnsurePod(p *corev1.Pod) error {
	group := h.Pod(p)
	if err := h.make(group); err != nil {
		return err
	}
	if err := h.setPIDs(group); err != nil {
		return err
	}
	return h.SetPod(p, pod.PodTotal(p))
}

// SetPod sets the limits of a pod's cgroup, which exists.
func (h *Hierarchy) SetPod(p *corev1.Pod, total pod.Total) error {
	group := h.Pod(p)
	if pod.QOS(p) == corev1.PodQOSBestEffort {
		return h.setCPU(group, pod.Shares(total.Requests.Cpu()), 0, 0)
	}
	quota, period := pod.Quota(total.Limits.Cpu())
	if err := h.setCPU(group, pod.Shares(total.Requests.Cpu()), quota, period); err != nil {
		return err
	}
	return h.setMemory(group, total.Limits.Memory().Value())
}

// SetClasses sets the CPU shares of the QoS classes: best effort gets what the others
// leave, burstable gets the given shares, the sum of its pods' requests.
func (h *Hierarchy) SetClasses(burstable int64) error {
	for _, c := range []struct {
		qos    corev1.PodQOSClass
		shares int64
	}{{corev1.PodQOSBestEffort, 2}, {corev1.PodQOSBurstable, burstable}} {
		group := h.class(c.qos)
		if err := h.make(group); err != nil {
			return err
		}
		if err := h.setCPU(group, c.shares, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// make creates a cgroup and its parents.
func (h *Hierarchy) make(group string) error {
	for name, dir := range h.dirs(group) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cgroup %s: %w", group, err)
		}
		if name == "cpuset" {
			if err := inheritCPUSet(h.v1[name], group); err != nil {
				return fmt.Errorf("cgroup %s: %w", group, err)
			}
		}
	}
	if !h.Unified() {
		return nil
	}
	// In v2, a cgroup has only the controllers that its parent delegates.
	dir := h.unified
	for _, part := range strings.Split(strings.Trim(group, "/"), "/") {
		if err := delegate(dir); err != nil {
			return fmt.Errorf("cgroup %s: %w", group, err)
		}
		dir = filepath.Join(dir, part)
	}
	if err := delegate(dir); err != nil {
		return fmt.Errorf("cgroup %s: %w", group, err)
	}
	return nil
}

// delegate enables all controllers of a v2 cgroup for its children.
func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(have)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
		if err != nil && (c == "cpu" || c == "memory" || c == "pids") {
			return err
		}
	}
	return nil
}

// inheritCPUSet fills in a v1 cpuset, which has no CPUs when it is created.
func inheritCPUSet(mount, group string) error {
	dir := mount
	for _, part := range strings.Split(strings.Trim(group, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			have, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil || strings.TrimSpace(string(have)) != "" {
				continue
			}
			from, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, file), from, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *Hierarchy) setCPU(group string, shares, quota, period int64) error {
	if h.Unified() {
		// Map v1's shares [2, 262144] linearly to v2's weight [1, 10000].
		weight := 1 + ((shares-2)*9999)/262142
		limit := "max 100000"
		if quota > 0 {
			limit = fmt.Sprintf("%d %d", quota, period)
		}
		return errors.Join(h.write("", group, "cpu.weight", strconv.FormatInt(weight, 10)), h.write("", group, "cpu.max", limit))
	}
	err := h.write("cpu", group, "cpu.shares", strconv.FormatInt(shares, 10))
	if quota > 0 {
		return errors.Join(err, h.write("cpu", group, "cpu.cfs_period_us", strconv.FormatInt(period, 10)), h.write("cpu", group, "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)))
	}
	return errors.Join(err, h.write("cpu", group, "cpu.cfs_quota_us", "-1"))
}

func (h *Hierarchy) setMemory(group string, limit int64) error {
	if h.Unified() {
		value := "max"
		if limit > 0 {
			value = strconv.FormatInt(limit, 10)
		}
		return h.write("", group, "memory.max", value)
	}
	if limit <= 0 {
		limit = -1
	}
	return h.write("memory", group, "memory.limit_in_bytes", strconv.FormatInt(limit, 10))
}

func (h *Hierarchy) write(controller, group, file, value string) error {
	name := filepath.Join(h.dirs(group)[controller], file)
	if err := os.WriteFile(name, []byte(value), 0o644); err != nil {
		return fmt.Errorf("cgroup %s: %s: %w", group, file, err)
	}
	return nil
}

// RemovePod removes a pod's cgroup, in whichever class it is. Processes that are left in it
// are killed: the runtime has stopped all that it knows of, but a runtime that was killed
// while it created a container does not know the first process of that container.
func (h *Hierarchy) RemovePod(uid types.UID) error {
	var all []error
	for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		group := path.Join(h.class(qos), "pod"+string(uid))
		for _, dir := range h.dirs(group) {
			killTree(dir)
		}
		all = append(all, h.freeze(group, false)) // StopPod may have frozen it
		for _, dir := range h.dirs(group) {
			all = append(all, removeTree(dir))
		}
	}
	return errors.Join(all...)
}

// killTree kills the processes in a cgroup and its descendants.
func killTree(dir string) {
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		list, err := os.ReadFile(name)
		if err != nil {
			return nil
		}
		for _, field := range strings.Fields(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return nil
	})
}

// Pods returns the UIDs of the pods that have a cgroup.
func (h *Hierarchy) Pods() []types.UID {
	seen := map[types.UID]bool{}
	for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		for _, dir := range h.dirs(h.class(qos)) {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				if uid, ok := strings.CutPrefix(e.Name(), "pod"); ok && e.IsDir() {
					seen[types.UID(uid)] = true
				}
			}
		}
	}
	var out []types.UID
	for uid := range seen {
		out = append(out, uid)
	}
	return out
}

// removeTree removes a cgroup and its descendants, children first. The kernel may need a
// moment to release a cgroup whose last process has just ended.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for try := 0; ; try++ {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if try == 7 {
			return fmt.Errorf("cgroup: %w", err)
		}
		time.Sleep(time.Duration(1<<try) * time.Millisecond)
	}
}
