package eviction

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/usage"
)

// MemoryMeter reads memory and process IDs from the kernel, without asking the runtime. It is
// implemented by [cgroup.Hierarchy].
type MemoryMeter interface {
	// Root is the cgroup of all pods, Pod a pod's, and Containers the names of those in it.
	Root() string
	Pod(*corev1.Pod) string
	Containers(group string) ([]string, error)
	Usage(group string) (cgroup.Usage, error)
	Memory(group string) (cgroup.Memory, error)
	// LimitMemory bounds the memory of a cgroup; 0 means no limit.
	LimitMemory(group string, bytes int64) error
}

// memoryWatch observes memory and process IDs.
type memoryWatch struct {
	meter MemoryMeter
	limit int64
	node  string
	// limited is true once the limit has been set. failed is true if that failed before.
	limited, failed bool
}

// observe reads what is left of the machine's memory and process IDs, and of the memory that
// pods may use.
func (m *memoryWatch) observe(ctx context.Context) Observed {
	m.enforce(ctx)
	o := Observed{}
	if memory, err := usage.MachineMemory(); err == nil {
		o[MemoryAvailable] = Observation{Available: int64(memory.Available), Capacity: int64(memory.Limit)}
	}
	if now, most := usage.Processes(); now > 0 && most > 0 {
		o[PIDAvailable] = Observation{Available: int64(most) - int64(now), Capacity: int64(most)}
	}
	if m.limit > 0 {
		if memory, err := m.meter.Memory(m.meter.Root()); err == nil {
			o[AllocatableMemory] = Observation{Available: m.limit - int64(memory.WorkingSet), Capacity: m.limit}
		}
	}
	return o
}

// enforce sets the limit of the pods' cgroup, until that has succeeded: the kernel refuses a
// limit below what is used.
func (m *memoryWatch) enforce(ctx context.Context) {
	if m.limited {
		return
	}
	err := m.meter.LimitMemory(m.meter.Root(), m.limit)
	m.limited = err == nil
	if err != nil && !m.failed {
		m.failed = true
		slog.WarnContext(ctx, "memory of all pods is not limited yet", "node", m.node, "limit", m.limit, "error", err)
	}
}

// measure reads the memory and the number of processes of pods.
func (m *memoryWatch) measure(_ context.Context, pods []*corev1.Pod) ([]Candidate, bool, error) {
	out := make([]Candidate, 0, len(pods))
	for _, p := range pods {
		out = append(out, Candidate{Pod: p, Use: m.use(p)})
	}
	return out, false, nil
}

// use returns what a pod uses, or nil if that cannot be read. A pod without a cgroup has not
// started, and uses nothing.
func (m *memoryWatch) use(p *corev1.Pod) *Use {
	group := m.meter.Pod(p)
	total, err := m.meter.Usage(group)
	if errors.Is(err, fs.ErrNotExist) {
		return &Use{}
	}
	if err != nil {
		return nil
	}
	out := &Use{Memory: int64(total.Memory.WorkingSet), PIDs: int64(total.PIDs)}
	members, _ := m.meter.Containers(group)
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range list {
			_, id, ok := strings.Cut(list[i].ContainerID, "://")
			if !ok || list[i].State.Running == nil {
				continue
			}
			for _, member := range members {
				if !strings.Contains(member, id) { // runtimes add a prefix and a suffix
					continue
				}
				if memory, err := m.meter.Memory(path.Join(group, member)); err == nil {
					out.Containers = append(out.Containers, ContainerUse{Name: list[i].Name, Memory: int64(memory.WorkingSet)})
				}
			}
		}
	}
	return out
}
