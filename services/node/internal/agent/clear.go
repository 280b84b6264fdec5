package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/log"
	"keelson.dev/services/node/internal/pod"
)

// cleanUp releases what a pod without running containers still holds: its network, volumes
// and cgroup. Its ended containers are kept for their logs.
func (w *worker) cleanUp(ctx context.Context, p *corev1.Pod, state *cri.Pod) error {
	for i := range state.Sandboxes {
		if err := w.a.cfg.Runtime.StopSandbox(ctx, state.Sandboxes[i].ID); err != nil {
			return fmt.Errorf("stop sandbox: %w", err)
		}
	}
	w.forgetPolicies()
	if err := w.a.volumes.Unmount(w.uid); err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	if w.a.cfg.Cgroups != nil {
		if err := w.a.cfg.Cgroups.RemovePod(w.uid); err != nil {
			return err
		}
		w.a.shareCPU(ctx)
	}
	return nil
}

// clear removes everything that belongs to a pod that no longer exists in the API. done is
// true when nothing is left.
func (w *worker) clear(ctx context.Context, p *corev1.Pod, state *cri.Pod) (next time.Duration, done bool) {
	if w.a.cfg.HostPorts != nil {
		w.a.cfg.HostPorts(string(w.uid), nil) // another pod may use these ports now
	}
	if wait, running := w.endContainers(ctx, p, state); running {
		return wait, false
	}
	if wait := time.Until(w.clean.until); wait > 0 {
		return wait, false
	}
	if err := w.clearAll(ctx, p, state); err != nil {
		if ctx.Err() == nil {
			w.a.log.WarnContext(ctx, "pod was not cleaned up", "pod", w.name(p), "error", cri.Message(err))
			w.clean.fail(200*time.Millisecond, 10*time.Second)
		}
		return max(w.clean.delay, time.Millisecond), false
	}
	return resync, true
}

func (w *worker) clearAll(ctx context.Context, p *corev1.Pod, state *cri.Pod) error {
	w.a.probes.Forget(w.uid)
	if err := w.cleanUp(ctx, p, state); err != nil {
		return err
	}
	for i := range state.Containers {
		if err := w.a.cfg.Runtime.RemoveContainer(ctx, state.Containers[i].ID); err != nil {
			return fmt.Errorf("remove container: %w", err)
		}
	}
	// Logs are removed while the runtime still knows the pod, so that the next agent finds
	// them if this one is interrupted.
	if err := w.a.logs.Remove(string(w.uid)); err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	for i := range state.Sandboxes {
		if err := w.a.cfg.Runtime.RemoveSandbox(ctx, state.Sandboxes[i].ID); err != nil {
			return fmt.Errorf("remove sandbox: %w", err)
		}
	}
	return nil
}

// keptInstances is how many instances of a container are kept: the current one, and the
// previous one for its log and its last state.
const keptInstances = 2

// prune removes old instances of containers, and sandboxes that no remaining instance uses.
func (w *worker) prune(ctx context.Context, p *corev1.Pod, state *cri.Pod) {
	count := map[string]int{}
	used := map[string]bool{}
	for i := range state.Containers {
		c := &state.Containers[i]
		count[c.Name]++
		if count[c.Name] <= keptInstances || c.State != cri.StateExited {
			used[c.SandboxID] = true
			continue
		}
		if err := w.a.cfg.Runtime.RemoveContainer(ctx, c.ID); err != nil {
			w.a.log.DebugContext(ctx, "ended container was not removed", "pod", pod.Key(p), "container", c.Name, "container_id", c.ID, "error", err)
			used[c.SandboxID] = true
			continue
		}
		w.removeLeftovers(p, c)
	}
	for i := range state.Sandboxes {
		box := &state.Sandboxes[i]
		if i == 0 || used[box.ID] {
			continue
		}
		err := w.a.cfg.Runtime.StopSandbox(ctx, box.ID)
		if err == nil {
			err = w.a.cfg.Runtime.RemoveSandbox(ctx, box.ID)
		}
		if err != nil {
			w.a.log.DebugContext(ctx, "old sandbox was not removed", "pod", pod.Key(p), "sandbox", box.ID, "error", err)
		}
	}
}

// removeLeftovers removes the files of an instance. Whatever cannot be removed now is
// removed with the pod.
func (w *worker) removeLeftovers(p *corev1.Pod, c *cri.Container) {
	name := filepath.Join(w.a.cfg.Settings.LogDirectory(p), pod.LogName(c.Name, c.RestartCount))
	if c.LogPath != "" {
		name = c.LogPath
	}
	log.Remove(name)
	w.a.logs.Unlink(p.Name, p.Namespace, c.Name, c.ID)
	delete(w.linked, c.ID)
	delete(w.resize.applied, c.ID)
	delete(w.resize.replaced, c.ID)
	_ = os.Remove(filepath.Join(w.a.volumes.PodDir(w.uid), "containers", c.Name, fmt.Sprintf("termination-%d", c.RestartCount)))
}
