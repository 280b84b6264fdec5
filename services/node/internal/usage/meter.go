package usage

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/cri"
)

// Groups reads cgroups; it is implemented by [cgroup.Hierarchy].
type Groups interface {
	Pod(*corev1.Pod) string
	Containers(group string) ([]string, error)
	CPU(group string) (cgroup.CPU, error)
	Usage(group string) (cgroup.Usage, error)
	Process(group string) int
	Machine() (u cgroup.Usage, bounded bool, err error)
}

// Runtime is the container runtime; it is implemented by [cri.Client].
type Runtime interface {
	Running(context.Context) ([]*runtimev1.Container, error)
	Stats(context.Context) ([]*runtimev1.ContainerStats, error)
	ImageUsage(context.Context) (cri.ImageUsage, error)
}

// Config configures a Meter. All fields are required.
type Config struct {
	Groups  Groups
	Runtime Runtime
	// Pods returns the node's pods.
	Pods func() []*corev1.Pod
	// Dir is the node's data directory.
	Dir string
	// LogDir returns the directory of a pod's logs, with a directory for each container.
	LogDir func(*corev1.Pod) string
	// Volumes returns the paths of a pod's mounted volumes by name.
	Volumes func(types.UID) map[string]string
}

// The ages up to which measurements serve, unless a Want says otherwise, and the intervals of
// Run.
const (
	DefaultMaxAge     = 5 * time.Second
	DefaultDiskMaxAge = 10 * time.Second
	sampleEvery       = 30 * time.Second
	// settling is the time from Run's first sample to its second.
	settling = 5 * time.Second
	// fresh is the age up to which a container's rate may be taken since its start.
	fresh = 2 * sampleEvery
)

// Want is what a caller of Read asks for.
type Want struct {
	// MaxAge is how old the measurement may be; 0 means DefaultMaxAge.
	MaxAge time.Duration
	// Disk asks for the disk usage of pods too, which may be as old as DiskMaxAge; 0 means
	// DefaultDiskMaxAge. Directories that take long to walk are older.
	Disk       bool
	DiskMaxAge time.Duration
}

// Meter measures. It is safe for concurrent use.
type Meter struct {
	cfg  Config
	now  func() time.Time
	boot time.Time

	// busy is held during a measurement; it guards windows, disks and sampled.
	busy    chan struct{}
	windows windows
	disks   disks
	sampled time.Time

	last, lastDisk atomic.Pointer[Report]
	imageDir       atomic.Pointer[string]
}

// New returns a Meter.
func New(cfg Config) *Meter {
	return &Meter{cfg: cfg, now: time.Now, boot: bootTime(), busy: make(chan struct{}, 1), windows: windows{}, disks: newDisks()}
}

// Machine measures the machine, without the pods and the CPU rate. It is cheap enough for
// every second.
func (m *Meter) Machine(ctx context.Context) (Node, error) {
	n, err := m.machine(m.now())
	if err != nil {
		return n, err
	}
	n.ImageFS = n.FS
	if dir := m.Images(ctx); dir != "" {
		if fs, err := statfs(dir); err == nil {
			n.ImageFS = fs
		}
	}
	return n, nil
}

// Images returns a directory on the file system of the images, or "" while it is not known. The runtime is asked until it
// has answered once.
func (m *Meter) Images(ctx context.Context) string {
	if dir := m.imageDir.Load(); dir != nil {
		return *dir
	}
	u, err := m.cfg.Runtime.ImageUsage(ctx)
	if err != nil {
		return ""
	}
	m.imageDir.Store(&u.Mountpoint)
	return u.Mountpoint
}

// Read returns a measurement that is young enough, and makes one if there is none. It fails if
// the machine or the runtime cannot be read.
func (m *Meter) Read(ctx context.Context, want Want) (*Report, error) {
	if r := m.young(want); r != nil {
		return r, nil
	}
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r := m.young(want); r != nil { // made while this caller waited
		return r, nil
	}
	return m.measure(ctx, want)
}

// young returns the last measurement if it is young enough.
func (m *Meter) young(want Want) *Report {
	now := m.now()
	if r := m.lastDisk.Load(); r != nil && now.Sub(r.Time) < cmp.Or(want.MaxAge, DefaultMaxAge) {
		return r
	}
	if r := m.last.Load(); r != nil && !want.Disk && now.Sub(r.Time) < cmp.Or(want.MaxAge, DefaultMaxAge) {
		return r
	}
	return nil
}

func (m *Meter) measure(ctx context.Context, want Want) (*Report, error) {
	running, err := m.cfg.Runtime.Running(ctx)
	if err != nil {
		return nil, fmt.Errorf("usage of pods: %s", cri.Message(err))
	}
	byID := make(map[string]*runtimev1.Container, len(running))
	for _, c := range running {
		byID[c.GetId()] = c
	}
	r := &Report{Disk: want.Disk}
	if r.Node, err = m.Machine(ctx); err != nil {
		return nil, err
	}
	r.Time = r.Node.Time
	r.Node.CPU.NanoCores, r.Node.CPU.Window = m.windows.see("", sample{r.Time, r.Node.CPU.Used}, time.Time{})
	pods := m.cfg.Pods()
	r.Pods = make([]Pod, 0, len(pods))
	for _, p := range pods {
		if out, ok := m.pod(p, byID); ok {
			r.Pods = append(r.Pods, out)
		}
	}
	slices.SortFunc(r.Pods, func(a, b Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(string(a.UID), string(b.UID)))
	})
	m.sampled = r.Time
	m.windows.keep(r.Time.Add(-fresh))
	m.disks.keep(pods)
	if want.Disk {
		if err := m.disk(ctx, r, pods, cmp.Or(want.DiskMaxAge, DefaultDiskMaxAge)); err != nil {
			return nil, err
		}
		m.lastDisk.Store(r)
	}
	m.last.Store(r)
	return r, nil
}

// pod measures a pod, except for its disk usage. ok is false if the pod has no cgroup.
func (m *Meter) pod(p *corev1.Pod, running map[string]*runtimev1.Container) (out Pod, ok bool) {
	group := m.cfg.Groups.Pod(p)
	now := m.now()
	total, err := m.cfg.Groups.Usage(group)
	if err != nil {
		return out, false
	}
	out = Pod{UID: p.UID, Namespace: p.Namespace, Name: p.Name, CPU: cpu(total.CPU), Memory: memory(total.Memory), PIDs: total.PIDs}
	if p.Status.StartTime != nil {
		out.Start = p.Status.StartTime.Time
	}
	out.CPU.NanoCores, out.CPU.Window = m.windows.see(group, sample{now, total.CPU.Used}, young(out.Start, now))
	members, err := m.cfg.Groups.Containers(group)
	if err != nil {
		return out, false
	}
	process := 0
	for _, member := range members {
		inner := path.Join(group, member)
		if process == 0 && !p.Spec.HostNetwork {
			process = m.cfg.Groups.Process(inner) // they share one network namespace
		}
		c := running[containerID(member)]
		if c == nil {
			continue // a sandbox
		}
		now := m.now()
		used, err := m.cfg.Groups.Usage(inner)
		if err != nil {
			continue // it has just ended
		}
		one := Container{
			Name: c.GetMetadata().GetName(), ID: c.GetId(), Image: cmp.Or(c.GetImage().GetUserSpecifiedImage(), c.GetImage().GetImage()),
			Start: time.Unix(0, c.GetCreatedAt()), CPU: cpu(used.CPU), Memory: memory(used.Memory), PIDs: used.PIDs,
		}
		one.CPU.NanoCores, one.CPU.Window = m.windows.see(inner, sample{now, used.CPU.Used}, young(one.Start, now))
		out.Containers = append(out.Containers, one)
	}
	if process > 0 {
		out.Network = network(fmt.Sprintf("/proc/%d/net", process))
	}
	slices.SortFunc(out.Containers, func(a, b Container) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), b.Start.Compare(a.Start))
	})
	// While a container is replaced, both may run for a moment.
	out.Containers = slices.CompactFunc(out.Containers, func(a, b Container) bool { return a.Name == b.Name })
	return out, true
}

// young returns a start if it is so recent that a rate since then is one of now.
func young(start, now time.Time) time.Time {
	if now.Sub(start) > fresh {
		return time.Time{}
	}
	return start
}

// containerID returns the container that a cgroup is for: some runtimes prefix its name, and
// systemd adds a suffix.
func containerID(group string) string {
	group = strings.TrimSuffix(group, ".scope")
	return group[strings.LastIndexByte(group, '-')+1:]
}

func cpu(c cgroup.CPU) CPU {
	return CPU{Used: c.Used, Periods: c.Periods, ThrottledPeriods: c.ThrottledPeriods, Throttled: c.Throttled}
}

func memory(u cgroup.Memory) Memory {
	out := Memory{
		Usage: u.Usage, WorkingSet: u.WorkingSet, RSS: u.RSS, Cache: u.Cache, Limit: u.Limit,
		PageFaults: u.Faults, MajorPageFaults: u.MajorFaults,
	}
	if u.Limit > 0 {
		out.Available = u.Limit - min(u.WorkingSet, u.Limit)
	}
	return out
}

// Run keeps the windows of CPU time while nothing calls Read, until ctx ends.
func (m *Meter) Run(ctx context.Context) error {
	next := time.NewTimer(0)
	defer next.Stop()
	for wait := settling; ; wait = sampleEvery {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
		m.sample()
		next.Reset(wait)
	}
}

// sample reads CPU times, unless a measurement runs or has just done so.
func (m *Meter) sample() {
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	default:
		return
	}
	now := m.now()
	if now.Sub(m.sampled) < settling {
		return
	}
	if u, _, err := m.cfg.Groups.Machine(); err == nil {
		m.windows.see("", sample{now, u.CPU.Used}, time.Time{})
	}
	for _, p := range m.cfg.Pods() {
		group := m.cfg.Groups.Pod(p)
		members, err := m.cfg.Groups.Containers(group)
		if err != nil {
			continue
		}
		for _, member := range append(members, "") { // and the pod itself
			inner := path.Join(group, member)
			if c, err := m.cfg.Groups.CPU(inner); err == nil {
				m.windows.see(inner, sample{m.now(), c.Used}, time.Time{})
			}
		}
	}
	m.sampled = now
	m.windows.keep(now.Add(-fresh))
	m.disks.keep(m.cfg.Pods())
}
