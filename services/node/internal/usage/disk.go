package usage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
)

const (
	// maxEntries is how many files of one directory are counted.
	maxEntries = 1 << 20
	// maxDepth is how deep a directory is walked; each level holds a file descriptor.
	maxDepth = 256
	// restFactor is how many times as long as the last walks of all directories took a
	// directory rests.
	restFactor = 20
)

// disks holds what directories took when they were last walked.
type disks struct {
	walked map[string]walked // by path
	took   time.Duration     // of all in walked
	layers map[string]FS     // by container
	asked  time.Time         // when the runtime was asked for layers
}

// walked is the result of a walk.
type walked struct {
	fs      FS
	partial bool
	at      time.Time
	took    time.Duration
	pod     string // the UID
}

func newDisks() disks { return disks{walked: map[string]walked{}} }

// keep forgets the directories of all other pods.
func (d *disks) keep(pods []*corev1.Pod) {
	known := map[string]bool{}
	for _, p := range pods {
		known[string(p.UID)] = true
	}
	for dir, w := range d.walked {
		if !known[w.pod] {
			d.took -= w.took
			delete(d.walked, dir)
		}
	}
}

// disk adds the disk usage of pods to a report.
func (m *Meter) disk(ctx context.Context, r *Report, pods []*corev1.Pod, maxAge time.Duration) error {
	if m.disks.layers == nil || r.Time.Sub(m.disks.asked) >= maxAge {
		if err := m.layers(ctx); err != nil {
			return err
		}
		m.disks.asked = r.Time
	}
	images, err := m.cfg.Runtime.ImageUsage(ctx)
	if err != nil {
		return fmt.Errorf("usage of images: %s", cri.Message(err))
	}
	r.Node.ImageFS.Used, r.Node.ImageFS.InodesUsed = images.Used, images.Inodes
	specs := make(map[string]*corev1.Pod, len(pods))
	for _, p := range pods {
		specs[string(p.UID)] = p
	}
	for i := range r.Pods {
		m.podDisk(ctx, r, &r.Pods[i], specs[string(r.Pods[i].UID)], maxAge)
	}
	return ctx.Err() // walks end with ctx
}

// layers asks the runtime for the sizes of writable layers.
func (m *Meter) layers(ctx context.Context) error {
	stats, err := m.cfg.Runtime.Stats(ctx)
	if err != nil {
		return fmt.Errorf("usage of writable layers: %s", cri.Message(err))
	}
	m.disks.layers = make(map[string]FS, len(stats))
	for _, s := range stats {
		layer := s.GetWritableLayer()
		m.disks.layers[s.GetAttributes().GetId()] = FS{Used: layer.GetUsedBytes().GetValue(), InodesUsed: layer.GetInodesUsed().GetValue()}
	}
	return nil
}

// podDisk adds the disk usage of one pod.
func (m *Meter) podDisk(ctx context.Context, r *Report, out *Pod, p *corev1.Pod, maxAge time.Duration) {
	logs := map[string]FS{}
	dir := m.cfg.LogDir(p)
	folders, _ := os.ReadDir(dir) // none before the first container
	for _, f := range folders {
		used, _ := m.walk(ctx, p, filepath.Join(dir, f.Name()), maxAge)
		logs[f.Name()] = used
		out.Ephemeral.add(used)
	}
	for i := range out.Containers {
		c := &out.Containers[i]
		c.Rootfs, c.Logs = r.Node.ImageFS, r.Node.FS
		layer := m.disks.layers[c.ID]
		c.Rootfs.Used, c.Rootfs.InodesUsed = layer.Used, layer.InodesUsed
		out.Ephemeral.add(layer)
		c.Logs.Used, c.Logs.InodesUsed = logs[c.Name].Used, logs[c.Name].InodesUsed
	}
	paths := m.cfg.Volumes(p.UID)
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		dir, mounted := paths[v.Name]
		if !mounted || v.HostPath != nil {
			continue
		}
		one := Volume{Name: v.Name, Claim: claimOf(p, v)}
		if one.Claim != "" || inMemory(v) {
			fs, err := statfs(dir)
			if err != nil {
				continue
			}
			one.FS = fs
		} else {
			used, partial := m.walk(ctx, p, dir, maxAge)
			one.FS, one.Partial = r.Node.FS, partial
			one.FS.Used, one.FS.InodesUsed = used.Used, used.InodesUsed
			if one.Ephemeral = v.EmptyDir != nil || v.ConfigMap != nil; one.Ephemeral {
				out.Ephemeral.add(used)
			}
		}
		out.Volumes = append(out.Volumes, one)
	}
	fs := r.Node.FS
	fs.Used, fs.InodesUsed = out.Ephemeral.Used, out.Ephemeral.InodesUsed
	out.Ephemeral = fs
}

func inMemory(v *corev1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumDefault
}

// claimOf returns the name of the claim that a volume uses, or "".
func claimOf(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}

// walk returns what a directory takes, from its last walk if that is recent enough. A
// directory that does not exist takes nothing.
func (m *Meter) walk(ctx context.Context, p *corev1.Pod, dir string, maxAge time.Duration) (FS, bool) {
	last, known := m.disks.walked[dir]
	began := m.now()
	if known && began.Sub(last.at) < max(maxAge, restFactor*m.disks.took) {
		return last.fs, last.partial
	}
	fs, partial, err := measureDir(ctx, dir, maxEntries)
	if err != nil {
		return last.fs, known // interrupted
	}
	now := m.now()
	m.disks.took += now.Sub(began) - last.took
	m.disks.walked[dir] = walked{fs: fs, partial: partial, at: now, took: now.Sub(began), pod: string(p.UID)}
	return fs, partial
}

// walker counts a directory tree.
type walker struct {
	ctx     context.Context
	dev     uint64
	left    int // entries that may still be counted
	partial bool
	fs      FS
	linked  map[uint64]bool // inodes with several names
	buf     []byte
}

// measureDir counts the files below dir, and dir itself, on dir's own file system. Files with
// several names count once. partial is true if not all were counted.
func measureDir(ctx context.Context, dir string, most int) (fs FS, partial bool, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return FS{}, false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return FS{}, false, nil
	}
	w := walker{ctx: ctx, dev: st.Dev, left: most, linked: map[uint64]bool{}, buf: make([]byte, 32<<10)}
	w.count(&st)
	w.walk(fd, maxDepth)
	return w.fs, w.partial, ctx.Err()
}

// count adds one file.
func (w *walker) count(st *unix.Stat_t) {
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		if w.linked[st.Ino] {
			return
		}
		w.linked[st.Ino] = true
	}
	w.fs.Used += uint64(st.Blocks) * 512
	w.fs.InodesUsed++
}

// walk counts what is in an open directory, and closes it.
func (w *walker) walk(fd, depth int) {
	defer unix.Close(fd)
	var dirs []string
	for w.ctx.Err() == nil && w.left >= 0 {
		n, err := unix.ReadDirent(fd, w.buf)
		if err != nil || n <= 0 {
			break
		}
		var names []string
		for rest := w.buf[:n]; len(rest) > 0; {
			var used int
			used, _, names = unix.ParseDirent(rest, -1, names)
			if used <= 0 {
				break
			}
			rest = rest[used:]
		}
		for _, name := range names {
			if w.left--; w.left < 0 {
				w.partial = true
				return
			}
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != w.dev {
				continue
			}
			w.count(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs = append(dirs, name)
			}
		}
	}
	if depth == 0 && len(dirs) > 0 {
		w.partial = true
		return
	}
	for _, name := range dirs {
		if w.ctx.Err() != nil || w.left < 0 {
			return
		}
		inner, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			w.walk(inner, depth-1)
		}
	}
}
