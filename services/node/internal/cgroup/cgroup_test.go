package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func newPod(cpu, memory string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u-1"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{}}}}
	if cpu != "" {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return p
}

// unified returns a v2 hierarchy in a temporary directory, with plain files instead of the
// kernel's.
func unified(t *testing.T) *Hierarchy {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"", "keelson", "keelson/node", "keelson/node/besteffort", "keelson/node/burstable", "keelson/node/podu-1", "keelson/node/besteffort/podu-1", "keelson/node/burstable/podu-1"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, sub, "cgroup.controllers"), []byte("cpu memory pids\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &Hierarchy{root: "/keelson/node", unified: dir}
}

func TestUnified(t *testing.T) {
	h := unified(t)
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(h.unified, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	guaranteed := newPod("500m", "64Mi")
	guaranteed.Spec.Containers[0].Resources.Requests[corev1.ResourceMemory] = resource.MustParse("64Mi")
	if err := h.EnsurePod(guaranteed); err != nil {
		t.Fatal(err)
	}
	if got := h.Pod(guaranteed); got != "/keelson/node/podu-1" {
		t.Errorf("group: %s", got)
	}
	for file, want := range map[string]string{
		"keelson/node/podu-1/cpu.max": "50000 100000", "keelson/node/podu-1/memory.max": "67108864", "keelson/node/podu-1/cpu.weight": "20",
		"keelson/cgroup.subtree_control": "+pids",
	} {
		if got := read(file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if err := h.EnsurePod(newPod("", "")); err != nil {
		t.Fatal(err)
	}
	if got := read("keelson/node/besteffort/podu-1/cpu.weight"); got != "1" {
		t.Errorf("best effort: %q", got)
	}
	if err := h.SetClasses(2048); err != nil {
		t.Fatal(err)
	}
	if got := read("keelson/node/burstable/cpu.weight"); got != "79" {
		t.Errorf("burstable: %q", got)
	}
	if got := h.Pods(); !slices.Equal(got, []types.UID{"u-1"}) {
		t.Errorf("pods: %v", got)
	}
}

// TestLimitsUnified checks the limits of processes and of all pods' memory.
func TestLimitsUnified(t *testing.T) {
	h := unified(t)
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(h.unified, name))
		return string(b)
	}
	if err := errors.Join(h.EnsurePod(newPod("", "")), h.LimitMemory(h.Root(), 1<<30)); err != nil {
		t.Fatal(err)
	}
	if got := read("keelson/node/besteffort/podu-1/pids.max"); got != "" {
		t.Errorf("processes without a limit: %q", got)
	}
	if got := read("keelson/node/memory.max"); got != "1073741824" {
		t.Errorf("memory: %q", got)
	}
	if err := errors.Join(h.LimitPodPIDs(100), h.EnsurePod(newPod("", "")), h.LimitMemory(h.Root(), 0)); err != nil {
		t.Fatal(err)
	}
	if got := read("keelson/node/besteffort/podu-1/pids.max"); got != "100" {
		t.Errorf("processes: %q", got)
	}
	if got := read("keelson/node/memory.max"); got != "max" {
		t.Errorf("memory without a limit: %q", got)
	}
	if err := (&Hierarchy{v1: map[string]string{"cpu": "/x", "memory": "/y"}}).LimitPodPIDs(1); err == nil {
		t.Error("processes were limited without a controller")
	}
}

// TestMachine uses the machine's own cgroups, under a root of the test's own.
func TestMachine(t *testing.T) {
	h, err := Detect(fmt.Sprintf("/keelson-cgroup-test-%d-%d/node", os.Getpid(), time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, dir := range h.dirs(filepath.Dir(h.root)) {
			if err := removeTree(dir); err != nil {
				t.Error(err)
			}
		}
	}()
	p := newPod("100m", "64Mi")
	if err := errors.Join(h.LimitPodPIDs(77), h.LimitMemory(h.Root(), 512<<20)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.EnsurePod(p); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := h.Memory(h.Root()); err != nil || m.Limit != 512<<20 {
		t.Errorf("memory of all pods: %+v, %v", m, err)
	}
	if n, err := h.number("pids", h.Pod(p), "pids.max"); err != nil || n != 77 {
		t.Errorf("processes of the pod: %d, %v", n, err)
	}
	if err := h.SetClasses(512); err != nil {
		t.Fatal(err)
	}
	if got := h.Pods(); len(got) != 1 || got[0] != p.UID {
		t.Errorf("pods: %v", got)
	}
	// A process that the runtime no longer knows is killed with its cgroup.
	forgotten := exec.Command("sleep", "1000")
	if err := forgotten.Start(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range h.dirs(h.Pod(p)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(forgotten.Process.Pid)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- forgotten.Wait() }()
	defer func() {
		_ = forgotten.Process.Kill()
		if err := <-ended; err == nil {
			t.Error("the orphaned process was not killed")
		}
	}()
	// A killed process takes a moment to end, longer on a busy machine. The agent retries
	// too.
	deadline := time.Now().Add(time.Minute)
	for err := h.RemovePod(p.UID); err != nil; err = h.RemovePod(p.UID) {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := h.RemovePod(p.UID); err != nil {
		t.Fatalf("removing it again: %v", err)
	}
	if got := h.Pods(); len(got) != 0 {
		t.Errorf("pods: %v", got)
	}
}

func TestRoot(t *testing.T) {
	for _, root := range []string{"", "/", "/a/..", "."} {
		if _, err := Detect(root); err == nil {
			t.Errorf("root %q was accepted", root)
		}
	}
}
