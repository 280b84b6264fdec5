package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/runtimetest"
)

// TestRecursiveReadOnly checks that what is mounted below a volume is read-only too, and
// that a runtime that cannot do that makes the container fail.
func TestRecursiveReadOnly(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(sub, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	f := r.features("")
	supported := f.RecursiveReadOnlyMounts != nil && *f.RecursiveReadOnlyMounts
	mounting := func(name string, mode corev1.RecursiveReadOnlyMode) *corev1.Pod {
		p := simple(name, forever)
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: &mode}}
		return r.create(p)
	}
	possible, enabled := mounting("possible", corev1.RecursiveReadOnlyIfPossible), mounting("enabled", corev1.RecursiveReadOnlyEnabled)
	for p, want := range map[*corev1.Pod]bool{possible: supported, enabled: true} {
		if p == enabled && !supported {
			r.await(p, "is refused", func(p *corev1.Pod) bool {
				w := containerStatus(p, "main").State.Waiting
				return w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, "not supported by the runtime")
			})
			continue
		}
		p = r.awaitReady(p)
		got := strings.TrimSpace(r.exec(p, "main", "sh", "-c", "touch /v/sub/x 2>/dev/null && echo written || echo refused"))
		if (got == "refused") != want {
			t.Errorf("%s: a write below a nested mount was %s", p.Name, got)
		}
		mode := containerStatus(p, "main").VolumeMounts[0].RecursiveReadOnly
		if mode == nil || (*mode == corev1.RecursiveReadOnlyEnabled) != want {
			t.Errorf("%s: status: %v", p.Name, mode)
		}
	}
}

// TestImageVolume checks that an image is mounted as a volume, with a path inside it, and
// that an image that does not exist is reported as such. A runtime that does not know image
// volumes fails to create the container.
func TestImageVolume(t *testing.T) {
	r := newRig(t)
	mounting := func(name, image, sub string) *corev1.Pod {
		p := simple(name, forever)
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: image, PullPolicy: corev1.PullNever}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPath: sub}}
		return r.create(p)
	}
	whole, inside, missing := mounting("whole", runtimetest.Image, ""), mounting("inside", runtimetest.Image, "bin"), mounting("missing", "keelson.test/missing:1", "")
	r.await(missing, "lacks its image", func(p *corev1.Pod) bool {
		w := containerStatus(p, "main").State.Waiting
		return w != nil && w.Reason == "ErrImageNeverPull"
	})
	if strings.HasPrefix(runtimetest.Version(t), "1.") {
		r.await(whole, "is not created", func(p *corev1.Pod) bool {
			w := containerStatus(p, "main").State.Waiting
			return w != nil && w.Reason == "CreateContainerError"
		})
		return
	}
	whole, inside = r.awaitReady(whole), r.awaitReady(inside)
	r.exec(whole, "main", "test", "-e", "/v/bin/sh")
	r.exec(inside, "main", "test", "-e", "/v/sh")
	found, err := r.runtime.Client.ImageStatus(context.Background(), runtimetest.UserImage)
	if err != nil || found == nil {
		t.Fatalf("%v, %v", found, err)
	}
	user := r.awaitReady(mounting("user", runtimetest.UserImage, ""))
	if used, err := r.runtime.Client.UsedImages(context.Background()); err != nil || !used[found.Id] {
		t.Errorf("the mounted image %s counts as unused: %v, %v", found.Id, used, err)
	}
	r.delete(user)
	if got := strings.TrimSpace(r.exec(whole, "main", "sh", "-c", "touch /v/x 2>/dev/null && echo written || echo refused")); got != "refused" {
		t.Errorf("a write to an image volume was %s", got)
	}
}

// TestUserNamespaceRefused checks that a pod that asks for a user namespace does not run
// without one.
func TestUserNamespaceRefused(t *testing.T) {
	r := newRig(t)
	p := simple("private", forever)
	host := false
	p.Spec.HostUsers = &host
	p = r.create(p)
	r.until("an event", time.Minute, func() bool {
		return strings.Contains(r.eventMessage(p, "FailedCreatePodSandBox"), "does not support user namespaces")
	})
}
