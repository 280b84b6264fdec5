package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// StopPod kills all processes of a pod, without the container runtime, and returns how many
// were left when it looked. Once none is left it freezes the pod's cgroup, so that a
// process which the runtime puts there later executes nothing; RemovePod ends that. It has
// to be called until it returns 0, and may be called after that.
func (h *Hierarchy) StopPod(uid types.UID) (left int, err error) {
	var all []error
	for _, qos := range []corev1.PodQOSClass{corev1.PodQOSGuaranteed, corev1.PodQOSBurstable, corev1.PodQOSBestEffort} {
		group := path.Join(h.class(qos), "pod"+string(uid))
		n, err := h.stop(group)
		left += n
		all = append(all, err)
	}
	return left, errors.Join(all...)
}

func (h *Hierarchy) stop(group string) (left int, err error) {
	dirs := h.dirs(group)
	for _, dir := range dirs {
		left += processes(dir)
	}
	if left > 0 {
		for _, dir := range dirs {
			killTree(dir)
		}
		// The processes of a frozen v1 cgroup die when it is thawed.
		return left, h.freeze(group, false)
	}
	return 0, h.freeze(group, true)
}

// freeze freezes a cgroup and its descendants, or thaws them. It does nothing if the cgroup
// does not exist or the machine has no freezer.
func (h *Hierarchy) freeze(group string, on bool) error {
	dirs := h.dirs(group)
	dir, file, value := dirs[""], "cgroup.freeze", "0"
	if on {
		value = "1"
	}
	if !h.Unified() {
		if dir = dirs["freezer"]; dir == "" {
			return nil
		}
		file, value = "freezer.state", "THAWED"
		if on {
			value = "FROZEN"
		}
	}
	err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// processes counts the processes in a cgroup and its descendants.
func processes(dir string) (n int) {
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		list, err := os.ReadFile(name)
		if err == nil {
			n += len(strings.Fields(string(list)))
		}
		return nil
	})
	return n
}
