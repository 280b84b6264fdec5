package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

// The kubelet's defaults: above highPercent disk usage, unused images are removed until
// lowPercent is reached, except those that were used within minAge.
const (
	highPercent = 85
	lowPercent  = 80
	minAge      = 2 * time.Minute
	// collectPeriod is the interval at which disk usage is checked.
	collectPeriod = 5 * time.Minute
	// listPeriod is the interval at which the images are listed.
	listPeriod = time.Minute
	// maxListed is the maximum number of images in a Node's status.
	maxListed = 50
)

// Store is the part of the CRI client that the collector uses.
type Store interface {
	Images(ctx context.Context) ([]*runtimev1.Image, error)
	RemoveImage(ctx context.Context, id string) error
	ImageFilesystem(ctx context.Context) (string, error)
	UsedImages(ctx context.Context) (map[string]bool, error)
}

// Collector removes unused images when the disk fills up, and lists the images that are
// present.
type Collector struct {
	store Store
	// usage returns the used share of a file system in percent, and its size in bytes.
	usage func(path string) (percent float64, size uint64, err error)
	now   func() time.Time

	mu     sync.Mutex
	seen   map[string]*history
	listed []corev1.ContainerImage
}

// history records when an image was first seen and last used.
type history struct{ first, used time.Time }

// NewCollector returns a collector. It does nothing until Run is called.
func NewCollector(store Store) *Collector {
	return &Collector{store: store, usage: diskUsage, now: time.Now, seen: map[string]*history{}}
}

func diskUsage(path string) (float64, uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, 0, err
	}
	if fs.Blocks == 0 {
		return 0, 0, nil
	}
	return 100 - 100*float64(fs.Bavail)/float64(fs.Blocks), fs.Blocks * uint64(fs.Bsize), nil
}

// Listed returns the images for the Node's status, largest first.
func (c *Collector) Listed() []corev1.ContainerImage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listed
}

// Run lists images and checks the disk periodically until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(listPeriod)
	defer ticker.Stop()
	collected := c.now()
	for {
		if images, err := c.look(ctx); err == nil && c.now().Sub(collected) >= collectPeriod {
			collected = c.now()
			if err := c.collect(ctx, images); err != nil && ctx.Err() == nil {
				slog.WarnContext(ctx, "unused images were not removed", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look lists the images that are present and records which of them are used.
func (c *Collector) look(ctx context.Context) ([]*runtimev1.Image, error) {
	images, err := c.store.Images(ctx)
	if err != nil {
		return nil, err
	}
	used, err := c.store.UsedImages(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	present := map[string]bool{}
	for _, img := range images {
		present[img.Id] = true
		h := c.seen[img.Id]
		if h == nil {
			h = &history{first: now}
			c.seen[img.Id] = h
		}
		if isUsed(img, used) {
			h.used = now
		}
	}
	for id := range c.seen {
		if !present[id] {
			delete(c.seen, id)
		}
	}
	c.listed = listing(images)
	return images, nil
}

func isUsed(img *runtimev1.Image, used map[string]bool) bool {
	if used[img.Id] {
		return true
	}
	for _, names := range [][]string{img.RepoTags, img.RepoDigests} {
		for _, n := range names {
			if used[n] {
				return true
			}
		}
	}
	return false
}

func listing(images []*runtimev1.Image) []corev1.ContainerImage {
	var out []corev1.ContainerImage
	for _, img := range images {
		names := append(append([]string(nil), img.RepoDigests...), img.RepoTags...)
		if len(names) == 0 {
			continue
		}
		sort.Strings(names)
		out = append(out, corev1.ContainerImage{Names: names[:min(len(names), 5)], SizeBytes: int64(img.Size)})
	}
	sort.SliceStable(out, func(i, j int) bool {
		if out[i].SizeBytes != out[j].SizeBytes {
			return out[i].SizeBytes > out[j].SizeBytes
		}
		return out[i].Names[0] < out[j].Names[0]
	})
	return out[:min(len(out), maxListed)]
}

// collect removes the images that have been unused longest, if the disk is too full.
func (c *Collector) collect(ctx context.Context, images []*runtimev1.Image) error {
	path, err := c.store.ImageFilesystem(ctx)
	if err != nil {
		return err
	}
	percent, size, err := c.usage(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if percent < highPercent {
		return nil
	}
	tofree := int64(float64(size) * (percent - lowPercent) / 100)
	slog.InfoContext(ctx, "disk is filling up, removing unused images", "path", path, "percent", percent, "bytes", tofree)
	var freed int64
	for _, img := range c.removable(images) {
		if freed >= tofree {
			return nil
		}
		if err := c.store.RemoveImage(ctx, img.Id); err != nil {
			slog.WarnContext(ctx, "image was not removed", "image", img.Id, "error", cri.Message(err))
			continue
		}
		freed += int64(img.Size)
	}
	if freed < tofree {
		return fmt.Errorf("freed %[2]d of %[1]d bytes: no other unused images are left", tofree, freed)
	}
	return nil
}

// RemoveUnused removes all images that no container uses, however full the disk is, except
// those that were pulled or used within minAge.
func (c *Collector) RemoveUnused(ctx context.Context) error {
	images, err := c.look(ctx)
	if err != nil {
		return fmt.Errorf("list images: %s", cri.Message(err))
	}
	var all []error
	for _, img := range c.removable(images) {
		if err := c.store.RemoveImage(ctx, img.Id); err != nil {
			all = append(all, fmt.Errorf("remove image %s: %s", img.Id, cri.Message(err)))
		}
	}
	return errors.Join(all...)
}

// removable returns the unused images, least recently used first.
func (c *Collector) removable(images []*runtimev1.Image) []*runtimev1.Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	var out []*runtimev1.Image
	for _, img := range images {
		h := c.seen[img.Id]
		if h == nil || img.Pinned || now.Sub(h.first) < minAge || now.Sub(h.used) < minAge {
			continue
		}
		out = append(out, img)
	}
	sort.SliceStable(out, func(i, j int) bool {
		a, b := c.seen[out[i].Id], c.seen[out[j].Id]
		if !a.used.Equal(b.used) {
			return a.used.Before(b.used)
		}
		return a.first.Before(b.first)
	})
	return out
}
