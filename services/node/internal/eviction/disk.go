package eviction

import (
	"context"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/usage"
)

// DiskMeter measures disks.
type DiskMeter struct {
	// Machine measures the machine's disks, and Read the pods'. They are those of
	// [usage.Meter].
	Machine func(context.Context) (usage.Node, error)
	Read    func(context.Context, usage.Want) (*usage.Report, error)
	// Data is a directory on the node's disk; Images returns one on the disk of images, or ""
	// while it is not known.
	Data   string
	Images func(context.Context) string
}

// diskWatch observes disks.
type diskWatch struct {
	meter DiskMeter
}

// observe reads what is left of the node's disk and of the disk of images.
func (d *diskWatch) observe(ctx context.Context) Observed {
	n, err := d.meter.Machine(ctx)
	if err != nil {
		return nil
	}
	o := Observed{}
	add := func(fs usage.FS, space, inodes Signal) {
		o[space] = Observation{Available: int64(fs.Available), Capacity: int64(fs.Capacity)}
		if fs.Inodes > 0 { // some file systems do not count them
			o[inodes] = Observation{Available: int64(fs.InodesFree), Capacity: int64(fs.Inodes)}
		}
	}
	add(n.FS, NodeFSAvailable, NodeFSInodesFree)
	if d.meter.Images(ctx) != "" { // the runtime has answered
		add(n.ImageFS, ImageFSAvailable, ImageFSInodesFree)
	}
	return o
}

// measure measures what pods use of the disks.
func (d *diskWatch) measure(ctx context.Context, pods []*corev1.Pod) ([]Candidate, bool, error) {
	r, err := d.meter.Read(ctx, usage.Want{Disk: true, DiskMaxAge: idlePace / 2})
	if err != nil {
		return nil, false, err
	}
	out := make([]Candidate, 0, len(pods))
	for _, p := range pods {
		out = append(out, Candidate{Pod: p, Use: diskUse(r.Pod(p.UID))})
	}
	return out, d.imageDisk(ctx), nil
}

// diskUse returns what a pod uses of disks, or nil if it was not measured.
func diskUse(p *usage.Pod) *Use {
	if p == nil {
		return nil
	}
	out := &Use{Volumes: map[string]Disk{}}
	for i := range p.Containers {
		c := &p.Containers[i]
		out.Containers = append(out.Containers, ContainerUse{Name: c.Name, Root: diskOf(c.Rootfs), Logs: diskOf(c.Logs)})
	}
	for i := range p.Volumes {
		if p.Volumes[i].Ephemeral {
			out.Volumes[p.Volumes[i].Name] = diskOf(p.Volumes[i].FS)
		}
	}
	return out
}

func diskOf(f usage.FS) Disk { return Disk{Bytes: int64(f.Used), Inodes: int64(f.InodesUsed)} }

// imageDisk reports whether images are on another disk than the node's volumes and logs.
func (d *diskWatch) imageDisk(ctx context.Context) bool {
	images := d.meter.Images(ctx)
	var a, b unix.Stat_t
	if images == "" || unix.Stat(d.meter.Data, &a) != nil || unix.Stat(images, &b) != nil {
		return false
	}
	return a.Dev != b.Dev
}
