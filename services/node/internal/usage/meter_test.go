package usage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/cri"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is cgroups, a runtime, pods and a clock.
type rig struct {
	mu     sync.Mutex
	now    time.Time
	groups map[string]cgroup.Usage
	pods   []*corev1.Pod
	list   []*runtimev1.Container
	layers map[string]uint64
	err    error

	listed, stats atomic.Int32
	block         chan struct{} // Running waits for it, if not nil
	dir           string
	volumes       map[string]string
}

func (r *rig) Pod(p *corev1.Pod) string { return "/pod" + string(p.UID) }

func (r *rig) Containers(group string) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name := range r.groups {
		if path.Dir(name) == group {
			out = append(out, path.Base(name))
		}
	}
	return out, nil
}

func (r *rig) CPU(group string) (cgroup.CPU, error) {
	u, err := r.Usage(group)
	return u.CPU, err
}

func (r *rig) Usage(group string) (cgroup.Usage, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u, ok := r.groups[group]
	if !ok {
		return u, fs.ErrNotExist
	}
	return u, nil
}

func (r *rig) Process(group string) int { return os.Getpid() }

func (r *rig) Machine() (cgroup.Usage, bool, error) {
	u, err := r.Usage("/")
	return u, false, err
}

func (r *rig) Running(ctx context.Context) ([]*runtimev1.Container, error) {
	r.listed.Add(1)
	if r.block != nil {
		<-r.block
	}
	return r.list, r.err
}

func (r *rig) Stats(context.Context) ([]*runtimev1.ContainerStats, error) {
	r.stats.Add(1)
	var out []*runtimev1.ContainerStats
	for id, n := range r.layers {
		out = append(out, &runtimev1.ContainerStats{
			Attributes:    &runtimev1.ContainerAttributes{Id: id},
			WritableLayer: &runtimev1.FilesystemUsage{UsedBytes: &runtimev1.UInt64Value{Value: n}, InodesUsed: &runtimev1.UInt64Value{Value: 3}},
		})
	}
	return out, nil
}

func (r *rig) ImageUsage(context.Context) (cri.ImageUsage, error) {
	return cri.ImageUsage{Mountpoint: r.dir, Used: 77, Inodes: 7}, nil
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// spend lets time pass, and a cgroup use CPU.
func (r *rig) spend(d time.Duration, group string, cpu time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
	u := r.groups[group]
	u.CPU.Used += cpu
	r.groups[group] = u
}

func newRig(t testing.TB) (*rig, *Meter) {
	t.Helper()
	t0 := time.Unix(1_000_000, 0)
	dir := t.TempDir()
	r := &rig{
		now: t0, dir: dir, volumes: map[string]string{},
		groups: map[string]cgroup.Usage{
			"/":             {},
			"/podu1":        {Memory: cgroup.Memory{Usage: 300, WorkingSet: 200, Limit: 1000}, PIDs: 3},
			"/podu1/c1":     {Memory: cgroup.Memory{Usage: 250, WorkingSet: 150}},
			"/podu1/pause":  {},
			"/podunknown":   {},
			"/podunknown/x": {},
		},
		list: []*runtimev1.Container{{Id: "c1", Metadata: &runtimev1.ContainerMetadata{Name: "web"}, CreatedAt: t0.Add(-time.Hour).UnixNano()}},
		pods: []*corev1.Pod{
			{ObjectMeta: metav1.ObjectMeta{Name: "ended", Namespace: "a", UID: "u0"}},
			{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "a", UID: "u1"}},
		},
	}
	m := New(Config{
		Groups: r, Runtime: r, Pods: func() []*corev1.Pod { return r.pods }, Dir: dir,
		LogDir:  func(p *corev1.Pod) string { return filepath.Join(dir, "logs", p.Name) },
		Volumes: func(types.UID) map[string]string { return r.volumes },
	})
	m.now = r.clock
	return r, m
}

func read(t testing.TB, m *Meter, want Want) *Report {
	t.Helper()
	r, err := m.Read(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRead(t *testing.T) {
	r, m := newRig(t)
	first := read(t, m, Want{})
	if len(first.Pods) != 1 || first.Pods[0].Name != "p" || len(first.Pods[0].Containers) != 1 {
		t.Fatalf("pods: %+v", first.Pods)
	}
	p := first.Pod("u1")
	if p.Memory.WorkingSet != 200 || p.Memory.Available != 800 || p.PIDs != 3 || p.CPU.Window != 0 {
		t.Errorf("pod: %+v", p)
	}
	if n := first.Node; n.Memory.WorkingSet == 0 || n.Memory.Limit < n.Memory.WorkingSet || n.FS.Capacity == 0 || n.ImageFS.Capacity == 0 || n.MaxPIDs == 0 || n.PIDs == 0 || n.Start.IsZero() {
		t.Errorf("node: %+v", n)
	}
	r.spend(4*time.Second, "/podu1/c1", time.Second)
	if read(t, m, Want{}) != first {
		t.Error("a measurement of 4 s ago does not serve")
	}
	r.spend(16*time.Second, "/podu1/c1", 3*time.Second)
	c := read(t, m, Want{}).Pod("u1").Container("web")
	if c.CPU.NanoCores != 200_000_000 || c.CPU.Window != 20*time.Second || c.CPU.Used != 4*time.Second || c.Memory.WorkingSet != 150 {
		t.Errorf("container: %+v", c)
	}
}

func TestRunKeepsTheWindow(t *testing.T) {
	r, m := newRig(t)
	m.sample()
	r.spend(20*time.Second, "/podu1/c1", 10*time.Second)
	if n := r.listed.Load(); n != 0 {
		t.Errorf("%d listings while nothing asks", n)
	}
	if c := read(t, m, Want{}).Pod("u1").Container("web"); c.CPU.NanoCores != 500_000_000 {
		t.Errorf("first answer: %+v", c.CPU)
	}
	r.spend(time.Second, "/podu1/c1", 0)
	before := m.sampled
	m.sample()
	if m.sampled != before {
		t.Error("sampled a second after a measurement")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestOneMeasurementServesAll(t *testing.T) {
	r, m := newRig(t)
	r.block = make(chan struct{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := m.Read(t.Context(), Want{}); err != nil {
				t.Error(err)
			}
		})
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r.block <- struct{}{} // one of them measures
	wg.Wait()
	if n := r.listed.Load(); n != 1 {
		t.Errorf("%d measurements", n)
	}
	m.busy <- struct{}{}
	if _, err := m.Read(gone, Want{MaxAge: 1, Disk: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that went away: %v", err)
	}
}

func TestRuntimeIsDown(t *testing.T) {
	r, m := newRig(t)
	r.err = errors.New("no connection")
	if _, err := m.Read(t.Context(), Want{}); err == nil {
		t.Error("no error")
	}
	if n, err := m.Machine(t.Context()); err != nil || n.Memory.Limit == 0 {
		t.Errorf("machine: %+v, %v", n, err)
	}
	r.err = nil
	read(t, m, Want{})
}

func write(t *testing.T, name string, size int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDisk(t *testing.T) {
	r, m := newRig(t)
	r.layers = map[string]uint64{"c1": 1 << 20, "other": 5 << 20}
	r.volumes = map[string]string{"data": filepath.Join(r.dir, "data"), "claim": r.dir, "token": filepath.Join(r.dir, "token")}
	write(t, filepath.Join(r.dir, "logs/p/web/0.log"), 64<<10)
	write(t, filepath.Join(r.dir, "logs/p/init/0.log"), 32<<10)
	write(t, filepath.Join(r.dir, "data/deep/er/file"), 128<<10)
	write(t, filepath.Join(r.dir, "token/token"), 4<<10)
	r.pods[1].Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "claim", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}},
		{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}},
		{Name: "not-mounted", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	if read(t, m, Want{}).Disk {
		t.Error("disks were measured unasked")
	}
	report := read(t, m, Want{Disk: true})
	p := report.Pod("u1")
	if !report.Disk || len(p.Volumes) != 3 {
		t.Fatalf("volumes: %+v", p.Volumes)
	}
	c := p.Container("web")
	if c.Rootfs.Used != 1<<20 || c.Logs.Used < 64<<10 || c.Logs.Used > 80<<10 {
		t.Errorf("container: %+v", c)
	}
	if u := p.Ephemeral.Used; u < (1<<20)+(224<<10) || u > (1<<20)+(300<<10) || p.Ephemeral.Capacity == 0 {
		t.Errorf("the pod takes %d", u)
	}
	if data := p.Volumes[0]; !data.Ephemeral || data.FS.InodesUsed != 4 || data.FS.Used < 128<<10 {
		t.Errorf("emptyDir: %+v", data)
	}
	if claim := p.Volumes[1]; claim.Claim != "c" || claim.Ephemeral || claim.FS.Capacity == 0 {
		t.Errorf("claim: %+v", claim)
	}
	if report.Node.ImageFS.Used != 77 {
		t.Errorf("images: %+v", report.Node.ImageFS)
	}
	if read(t, m, Want{}) != report {
		t.Error("a measurement with disks does not serve those who need none")
	}
	// Within DiskMaxAge, neither the runtime nor the directories are asked again.
	write(t, filepath.Join(r.dir, "data/more"), 1<<20)
	r.spend(6*time.Second, "/", 0)
	again := read(t, m, Want{Disk: true})
	if again == report || r.stats.Load() != 1 || again.Pod("u1").Volumes[0].FS.Used != p.Volumes[0].FS.Used {
		t.Errorf("after 6 s: %d questions, %+v", r.stats.Load(), again.Pod("u1").Volumes[0])
	}
	r.spend(6*time.Second, "/", 0)
	if again := read(t, m, Want{Disk: true}); r.stats.Load() != 2 || again.Pod("u1").Volumes[0].FS.Used < 1<<20 {
		t.Errorf("after 12 s: %d questions, %+v", r.stats.Load(), again.Pod("u1").Volumes[0])
	}
	r.pods = nil
	r.spend(2*time.Minute, "/", 0)
	read(t, m, Want{})
	if len(m.disks.walked) != 0 || len(m.windows) != 1 {
		t.Errorf("remembers pods that are gone: %v, %v", m.disks.walked, m.windows)
	}
}

func TestSlowDirectoriesRest(t *testing.T) {
	r, m := newRig(t)
	dir := filepath.Join(r.dir, "d")
	write(t, filepath.Join(dir, "f"), 1)
	p := r.pods[1]
	m.disks.walked[dir] = walked{fs: FS{Used: 42}, at: r.now, took: time.Second, pod: "u1"}
	m.disks.took = time.Second
	r.spend(19*time.Second, "/", 0)
	if fs, _ := m.walk(t.Context(), p, dir, 10*time.Second); fs.Used != 42 {
		t.Error("walked again after 19 s")
	}
	r.spend(2*time.Second, "/", 0)
	if fs, _ := m.walk(t.Context(), p, dir, 10*time.Second); fs.Used == 42 {
		t.Error("not walked again after 21 s")
	}
}

func TestMeasureDir(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a/b/file"), 100<<10)
	if err := os.Link(filepath.Join(dir, "a/b/file"), filepath.Join(dir, "a/linked")); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	write(t, filepath.Join(outside, "big"), 10<<20)
	for name, target := range map[string]string{"out": outside, "self": "."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	fs, partial, err := measureDir(t.Context(), dir, 1000)
	if err != nil || partial || fs.InodesUsed != 6 || fs.Used < 100<<10 || fs.Used > 200<<10 {
		t.Errorf("%+v, %v, %v", fs, partial, err)
	}
	if fs, partial, _ := measureDir(t.Context(), dir, 3); !partial || fs.InodesUsed > 4 {
		t.Errorf("with 3 entries: %+v, %v", fs, partial)
	}
	if fs, _, err := measureDir(t.Context(), filepath.Join(dir, "out"), 1000); err != nil || fs.Used != 0 {
		t.Errorf("followed a link: %+v, %v", fs, err)
	}
	if fs, _, err := measureDir(t.Context(), filepath.Join(dir, "gone"), 1000); err != nil || fs.Used != 0 {
		t.Errorf("a directory that does not exist: %+v, %v", fs, err)
	}
	deep := filepath.Join(dir, "deep")
	for range maxDepth + 10 {
		deep = filepath.Join(deep, "d")
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if fs, partial, _ := measureDir(t.Context(), dir, 10_000); !partial || fs.InodesUsed < maxDepth {
		t.Errorf("a deep directory: %+v, %v", fs, partial)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := measureDir(ctx, dir, 1000); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// BenchmarkProcesses measures 100 pods of one container in real cgroups; it needs root.
func BenchmarkProcesses(b *testing.B) {
	h, err := cgroup.Detect("/keelson-usage-benchmark")
	if err != nil {
		b.Fatal(err)
	}
	r, m := newRig(b)
	r.pods, r.list = nil, nil
	for i := range 100 {
		id := string(rune('a'+i/10)) + string(rune('0'+i%10))
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p" + id, Namespace: "b", UID: types.UID(id)}}
		r.pods = append(r.pods, p)
		r.list = append(r.list, &runtimev1.Container{Id: "c" + id, Metadata: &runtimev1.ContainerMetadata{Name: "c"}})
		b.Cleanup(func() { _ = h.RemovePod(p.UID) })
		if err := h.EnsurePod(p); err != nil {
			b.Fatal(err)
		}
		for _, inner := range []string{"c" + id, "s" + id} {
			if err := ensure(h, path.Join(h.Pod(p), inner)); err != nil {
				b.Fatal(err)
			}
		}
	}
	m.cfg.Groups, m.now = h, time.Now
	b.Run("measure", func(b *testing.B) {
		for b.Loop() {
			if out := read(b, m, Want{MaxAge: 1}); len(out.Pods) != 100 || len(out.Pods[0].Containers) != 1 {
				b.Fatal(len(out.Pods))
			}
		}
	})
	b.Run("sample", func(b *testing.B) {
		for b.Loop() {
			m.sampled = time.Time{}
			m.sample()
		}
	})
	b.Run("machine", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Machine(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// ensure creates a cgroup for a container in each hierarchy that has its pod.
func ensure(h *cgroup.Hierarchy, group string) error {
	mounts, err := filepath.Glob("/sys/fs/cgroup/*" + path.Dir(group))
	if h.Unified() {
		mounts = []string{"/sys/fs/cgroup" + path.Dir(group)}
	}
	for _, dir := range mounts {
		if err := os.Mkdir(path.Join(dir, path.Base(group)), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return err
}
