package eviction

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/usage"
)

const mi = 1 << 20

// machine is a node of the tests: a machine, its pods, and the agent that runs them.
type machine struct {
	t  *testing.T
	at time.Time

	mu                sync.Mutex
	memory            map[string]int64 // by cgroup
	disks             usage.Node
	images            string // a directory on the disk of images
	pods              []*corev1.Pod
	use               map[types.UID]usage.Pod
	stubborn          map[types.UID]bool
	evicted           []string
	endings           map[string]pod.Ending
	reclaimed, walked int
	limits            []int64
	refused           error
}

func newMachine(t *testing.T, names ...string) *machine {
	m := &machine{
		t: t, at: time.Unix(1_000_000, 0), memory: map[string]int64{"/node": 0}, use: map[types.UID]usage.Pod{}, stubborn: map[types.UID]bool{}, endings: map[string]pod.Ending{},
		disks: usage.Node{FS: usage.FS{Capacity: 1000 * mi, Available: 500 * mi, Inodes: 1000, InodesFree: 500}, ImageFS: usage.FS{Capacity: 1000 * mi, Available: 500 * mi}},
	}
	for _, name := range names {
		p := newPod(name, 0)
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", ContainerID: "containerd://id-" + name, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
		m.pods = append(m.pods, p)
	}
	return m
}

func (m *machine) Root() string             { return "/node" }
func (m *machine) Pod(p *corev1.Pod) string { return "/node/pod" + string(p.UID) }
func (m *machine) Containers(group string) ([]string, error) {
	return []string{"sandbox", "cri-id-" + strings.TrimPrefix(group, "/node/pod") + ".scope"}, nil
}

func (m *machine) Usage(group string) (cgroup.Usage, error) {
	memory, err := m.Memory(group)
	return cgroup.Usage{Memory: memory}, err
}

func (m *machine) Memory(group string) (cgroup.Memory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.memory[group]
	if !ok {
		return cgroup.Memory{}, fs.ErrNotExist
	}
	return cgroup.Memory{WorkingSet: uint64(n)}, nil
}

func (m *machine) LimitMemory(_ string, bytes int64) error {
	m.limits = append(m.limits, bytes)
	return m.refused
}

func (m *machine) Active() []*corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.pods)
}

func (m *machine) Evict(uid types.UID, e pod.Ending) (<-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.pods, func(p *corev1.Pod) bool { return p.UID == uid })
	if i < 0 {
		return nil, errors.New("no such pod")
	}
	m.evicted = append(m.evicted, string(uid))
	m.endings[string(uid)] = e
	over := make(chan struct{})
	if !m.stubborn[uid] {
		m.memory["/node"] -= m.memory["/node/pod"+string(uid)]
		m.pods = slices.Delete(m.pods, i, i+1)
		close(over)
	}
	return over, nil
}

func (m *machine) loop(args ...string) *Loop {
	m.t.Helper()
	return newLoop(Config{
		Node: "node-a", Policy: policy(m.t, args...), Agent: m, Memory: m, Limit: 1000 * mi,
		Disk: DiskMeter{
			Machine: func(context.Context) (usage.Node, error) { m.mu.Lock(); defer m.mu.Unlock(); return m.disks, nil },
			Read: func(_ context.Context, w usage.Want) (*usage.Report, error) {
				m.mu.Lock()
				defer m.mu.Unlock()
				if !w.Disk {
					m.t.Error("disks were not asked for")
				}
				m.walked++
				r := &usage.Report{}
				for _, p := range m.use {
					r.Pods = append(r.Pods, p)
				}
				return r, nil
			},
			Data: m.t.TempDir(), Images: func(context.Context) string { return m.images },
		},
		Reclaim: func(context.Context) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.reclaimed++
			return nil
		},
		Metrics: NewMetrics(prometheus.NewRegistry()),
	}, func() time.Time { return m.at })
}

// takes sets the memory of a pod.
func (m *machine) takes(name string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.memory["/node"] += n - m.memory["/node/pod"+name]
	m.memory["/node/pod"+name] = n
	m.memory["/node/pod"+name+"/cri-id-"+name+".scope"] = n
}

func (m *machine) want(what string) {
	m.t.Helper()
	if got := strings.Join(m.evicted, " "); got != what {
		m.t.Errorf("evicted: %q, want %q", got, what)
	}
}

// TestMemoryHog checks that the largest pod is evicted and nothing else, that the node
// reports pressure until the transition period is over, and that it refuses best-effort pods
// meanwhile.
func TestMemoryHog(t *testing.T) {
	m := newMachine(t, "quiet", "hog", "waiting")
	l := m.loop("--eviction-hard=allocatableMemory.available<100Mi")
	m.takes("quiet", 50*mi)
	m.takes("hog", 700*mi)
	if wait := l.memory.look(t.Context()); wait > 100*time.Millisecond || len(m.evicted) > 0 {
		t.Errorf("150 MiB above the threshold: next look in %s, evicted %v", wait, m.evicted)
	}
	m.takes("hog", 900*mi)
	if wait := l.memory.look(t.Context()); wait != 0 {
		t.Errorf("after an eviction: next look in %s", wait)
	}
	m.want("hog")
	e := m.endings["hog"]
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 900Mi, request is 0, has larger consumption of memory. "
	if e.Message != want || e.Reason != "Evicted" || *e.Grace != time.Second || len(e.Conditions) != 1 || e.Conditions[0].Type != corev1.DisruptionTarget || e.Conditions[0].Reason != "TerminationByKubelet" {
		t.Errorf("ending: %+v", e)
	}
	l.memory.look(t.Context())
	m.want("hog")
	if r := l.Admit(newPod("new", 0)); r == nil || r.Reason != "Evicted" {
		t.Errorf("a best-effort pod under memory pressure: %v", r)
	}
	m.at = m.at.Add(5 * time.Minute)
	l.memory.look(t.Context())
	if got := l.Pressure(); len(got) > 0 {
		t.Errorf("after the transition period: %v", got)
	}
	if n := testutil.ToFloat64(l.cfg.Metrics.evictions.WithLabelValues("allocatableMemory.available")); n != 1 {
		t.Errorf("metric: %g", n)
	}
}

// TestNothingToEvict checks that a shortage that no eviction can end is acted on every 10 s,
// not at every look.
func TestNothingToEvict(t *testing.T) {
	m := newMachine(t, "system")
	m.pods[0].Spec.Priority = ptr(int32(2_000_000_000))
	m.takes("system", 950*mi)
	l := m.loop("--eviction-hard=allocatableMemory.available<100Mi,nodefs.available<600Mi")
	if wait := l.memory.look(t.Context()); wait != idlePace {
		t.Errorf("next look in %s", wait)
	}
	for range 3 {
		l.disk.look(t.Context())
	}
	if m.reclaimed != 1 {
		t.Errorf("reclaimed %d times in 10 s", m.reclaimed)
	}
	m.at = m.at.Add(idlePace)
	l.disk.look(t.Context())
	if m.reclaimed != 2 {
		t.Errorf("reclaimed %d times in 20 s", m.reclaimed)
	}
	m.want("")
	if got := l.Pressure(); len(got) != 2 {
		t.Errorf("pressure: %v", got)
	}
}

// TestUnknownImages checks that the disk of images is not judged before it is known.
func TestUnknownImages(t *testing.T) {
	m := newMachine(t, "a")
	m.disks.ImageFS.Available = 0
	l := m.loop("--eviction-hard=imagefs.available<10%,nodefs.available<10%")
	l.disk.look(t.Context())
	m.want("")
	m.images = t.TempDir()
	l.disk.look(t.Context())
	m.want("a")
}

// TestReclaimFirst checks that no pod is evicted if removing images is enough.
func TestReclaimFirst(t *testing.T) {
	m := newMachine(t, "a")
	l := m.loop("--eviction-hard=nodefs.available<10%", "--eviction-minimum-reclaim=nodefs.available=100Mi")
	m.disks.FS.Available = 99 * mi
	l.cfg.Reclaim, l.disk.reclaim = nil, func(context.Context) error {
		m.disks.FS.Available = 200 * mi
		return errors.New("one image is in use")
	}
	if wait := l.disk.look(t.Context()); wait != 0 {
		t.Errorf("next look in %s", wait)
	}
	m.want("")
	l.disk.reclaim = func(context.Context) error { return nil }
	m.disks.FS.Available = 99 * mi
	l.disk.look(t.Context())
	m.want("a")
}

// TestLimits checks that pods beyond their limits of local storage are evicted together, and
// that nothing is measured if no pod has a limit.
func TestLimits(t *testing.T) {
	m := newMachine(t, "fine", "filler", "spammer", "free")
	l := m.loop()
	l.disk.look(t.Context())
	if m.walked != 0 {
		t.Error("pods without limits were measured")
	}
	limit := resource.MustParse("10Mi")
	for _, p := range m.pods[:2] {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
	}
	m.pods[2].Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: limit}
	volume := func(n uint64) usage.Pod {
		return usage.Pod{Volumes: []usage.Volume{{Name: "v", Ephemeral: true, FS: usage.FS{Used: n}}}}
	}
	m.use["fine"], m.use["filler"] = volume(9*mi), volume(11*mi)
	m.use["spammer"] = usage.Pod{Containers: []usage.Container{{Name: "c", Logs: usage.FS{Used: 11 * mi}}}}
	for uid, u := range m.use {
		u.UID = uid
		m.use[uid] = u
	}
	m.at = m.at.Add(idlePace)
	l.disk.look(t.Context())
	slices.Sort(m.evicted)
	m.want("filler spammer")
	if e := m.endings["filler"]; e.Message != `Usage of EmptyDir volume "v" exceeds the limit "10Mi". ` || *e.Grace != time.Second || len(e.Conditions) != 0 {
		t.Errorf("ending: %+v", e)
	}
}

// TestStubbornPod checks that a pod that does not end in time is not evicted again: the next
// one is.
func TestStubbornPod(t *testing.T) {
	m := newMachine(t, "hog", "next")
	m.takes("hog", 600*mi)
	m.takes("next", 350*mi)
	m.stubborn["hog"] = true
	l := m.loop("--eviction-hard=allocatableMemory.available<100Mi")
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that the wait for the pod ends at once
	l.memory.look(ctx)
	m.want("hog")
	l.memory.ending = map[types.UID]<-chan struct{}{"hog": make(chan struct{})}
	l.memory.look(t.Context())
	m.want("hog next")
}

// TestMemoryLimit checks that the limit of all pods is set once, and again while the kernel
// refuses it.
func TestMemoryLimit(t *testing.T) {
	m := newMachine(t)
	m.refused = errors.New("busy")
	l := m.loop()
	l.memory.look(t.Context())
	m.refused = nil
	l.memory.look(t.Context())
	l.memory.look(t.Context())
	if !slices.Equal(m.limits, []int64{1000 * mi, 1000 * mi, 1000 * mi}) {
		t.Errorf("limits: %v", m.limits)
	}
}

// TestRun checks that both watches end with the context.
func TestRun(t *testing.T) {
	m := newMachine(t, "a")
	l := m.loop()
	l.now = time.Now
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the loop did not end")
	}
}

func ptr[T any](v T) *T { return &v }

// wholeMachine reads the cgroup of all processes.
type wholeMachine struct{ *cgroup.Hierarchy }

func (wholeMachine) Root() string                    { return "/" }
func (wholeMachine) LimitMemory(string, int64) error { return nil }

// BenchmarkLook measures a look at memory and process IDs.
func BenchmarkLook(b *testing.B) {
	h, err := cgroup.Detect("/keelson-eviction-benchmark")
	if err != nil {
		b.Fatal(err)
	}
	m := &memoryWatch{meter: wholeMachine{h}, limit: 1 << 40, node: "a"}
	b.ReportAllocs()
	for b.Loop() {
		m.observe(b.Context())
	}
}
