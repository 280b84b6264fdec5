package cgroup

import (
	"fmt"
	"strconv"
)

// Root returns the cgroup of all pods.
func (h *Hierarchy) Root() string { return h.root }

// LimitMemory bounds the memory of a cgroup in bytes, and creates the cgroup if it does not
// exist; 0 means no limit. The kernel may refuse a limit below what is used.
func (h *Hierarchy) LimitMemory(group string, bytes int64) error {
	if err := h.make(group); err != nil {
		return err
	}
	return h.setMemory(group, bytes)
}

// LimitPodPIDs bounds the processes and threads of each pod that is started from now on; 0
// or less means no limit.
func (h *Hierarchy) LimitPodPIDs(n int64) error {
	if n > 0 && h.v1 != nil && h.v1["pids"] == "" {
		return fmt.Errorf("cgroups: processes of pods cannot be limited: the pids controller is not mounted")
	}
	h.podPIDs = max(n, 0)
	return nil
}

// setPIDs applies the limit of processes to a pod's cgroup.
func (h *Hierarchy) setPIDs(group string) error {
	if h.podPIDs == 0 {
		return nil
	}
	controller := "pids"
	if h.Unified() {
		controller = ""
	}
	return h.write(controller, group, "pids.max", strconv.FormatInt(h.podPIDs, 10))
}
