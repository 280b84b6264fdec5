package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/volume"
)

// containerConfig assembles a container's CRI configuration.
func (w *worker) containerConfig(ctx context.Context, p *corev1.Pod, state *cri.Pod, s pod.Start, found *runtimev1.Image, sandbox *runtimev1.PodSandboxConfig) (*runtimev1.ContainerConfig, error) {
	c := s.Container
	hostIPs := w.a.cfg.HostIPs()
	ips := hostIPs
	if !p.Spec.HostNetwork {
		ips = nil
		if box := state.Sandbox(); box != nil {
			ips = box.IPs
		}
	}
	env, skipped, err := pod.Env(p, c, pod.EnvSources{
		ConfigMap:   func(name string) (*corev1.ConfigMap, error) { return w.a.objects.ConfigMap(ctx, p.Namespace, name) },
		Secret:      func(name string) (*corev1.Secret, error) { return w.a.objects.Secret(ctx, p.Namespace, name) },
		Services:    w.a.cfg.Services(),
		Allocatable: w.a.cfg.Allocatable(),
		PodIPs:      ips, HostIPs: hostIPs,
	})
	if err != nil {
		return nil, err
	}
	if len(skipped) > 0 {
		w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.InvalidEnvironment,
			"Keys %v were skipped since they are considered invalid environment variable names.", skipped)
	}
	recursive := false
	if w.a.cfg.Features != nil {
		handler, err := w.runtimeHandler(ctx, p)
		if err != nil {
			return nil, err
		}
		f := w.a.cfg.Features(handler)
		recursive = f.RecursiveReadOnlyMounts != nil && *f.RecursiveReadOnlyMounts
	}
	mounts, err := w.a.volumes.Mounts(p, c, volume.Needs{
		Lookup: pod.Lookup(env), Recursive: recursive,
		Image: func(v *corev1.Volume) (*runtimev1.ImageSpec, error) { return w.volumeImage(ctx, p, c, v, sandbox) },
	})
	if err != nil {
		return nil, err
	}
	own, err := w.ownMounts(p, c, ips, s.RestartCount)
	if err != nil {
		return nil, err
	}
	if err := w.a.logs.Folder(pod.LogFolder(p), c.Name); err != nil {
		return nil, fmt.Errorf("create log directory: %w", err)
	}
	config, err := pod.ContainerConfig(p, w.a.cfg.Settings, pod.ContainerInput{
		Start: s, Env: env, Mounts: append(mounts, own...), ImageRef: found.Id, Image: found,
	})
	if err != nil || w.a.cfg.Devices == nil {
		return config, err
	}
	devices, err := w.a.cfg.Devices.Start(ctx, p, c)
	if err != nil {
		return nil, err
	}
	grant(config, devices)
	return config, nil
}

// volumeImage pulls the image that is mounted as a volume, if the volume's pull policy
// requires that.
func (w *worker) volumeImage(ctx context.Context, p *corev1.Pod, c *corev1.Container, v *corev1.Volume, sandbox *runtimev1.PodSandboxConfig) (*runtimev1.ImageSpec, error) {
	as := corev1.Container{Name: c.Name, Image: v.Image.Reference, ImagePullPolicy: v.Image.PullPolicy}
	found, err := w.a.images.Ensure(ctx, p, &as, w.pullSecrets(ctx, p), sandbox)
	if err != nil {
		return nil, err
	}
	return &runtimev1.ImageSpec{Image: found.Id, UserSpecifiedImage: v.Image.Reference}, nil
}

// ownMounts returns the files that the node adds to every container: /etc/hosts and the
// termination message file.
func (w *worker) ownMounts(p *corev1.Pod, c *corev1.Container, ips []string, attempt int) ([]*runtimev1.Mount, error) {
	dir := w.a.volumes.PodDir(p.UID)
	if err := makeDir(dir, 0o750); err != nil {
		return nil, err
	}
	taken := func(path string) bool {
		for _, m := range c.VolumeMounts {
			if filepath.Clean("/"+m.MountPath) == path {
				return true
			}
		}
		return false
	}
	var out []*runtimev1.Mount
	if !taken("/etc/hosts") && (len(ips) > 0 || p.Spec.HostNetwork) {
		var host []byte
		if p.Spec.HostNetwork {
			var err error
			if host, err = os.ReadFile("/etc/hosts"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
		name := filepath.Join(dir, "etc-hosts")
		text := pod.Hosts(p, ips, w.a.cfg.Settings.Resolver.ClusterDomain, string(host))
		if !holds(name, text) {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				return nil, err
			}
			if err := os.Chmod(name, 0o644); err != nil {
				return nil, err
			}
		}
		readOnly := c.SecurityContext != nil && c.SecurityContext.ReadOnlyRootFilesystem != nil && *c.SecurityContext.ReadOnlyRootFilesystem
		out = append(out, &runtimev1.Mount{ContainerPath: "/etc/hosts", HostPath: name, Readonly: readOnly})
	}
	if path := c.TerminationMessagePath; path != "" && !taken(path) {
		last := filepath.Join(dir, "containers", c.Name)
		if err := makeDir(last, 0o750); err != nil {
			return nil, err
		}
		name := filepath.Join(last, fmt.Sprintf("termination-%d", attempt))
		if err := os.WriteFile(name, nil, 0o666); err != nil {
			return nil, err
		}
		if err := os.Chmod(name, 0o666); err != nil {
			return nil, err
		}
		out = append(out, &runtimev1.Mount{ContainerPath: path, HostPath: name})
	}
	return out, nil
}

// holds reports whether a regular file holds exactly text. It compares sizes first, because
// a container may have written any amount to the file.
func holds(name, text string) bool {
	if info, err := os.Lstat(name); err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(text)) {
		return false
	}
	have, err := os.ReadFile(name)
	return err == nil && string(have) == text
}

func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	return nil
}
