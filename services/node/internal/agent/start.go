package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/image"
	"keelson.dev/services/node/internal/log"
	"keelson.dev/services/node/internal/pod"
)

// Waiting reasons of a container that could not be started.
const (
	reasonConfig    = "CreateContainerConfigError"
	reasonCreate    = "CreateContainerError"
	reasonRun       = "RunContainerError"
	reasonPostStart = "PostStartHookError"
)

// startError explains why a container could not be started and when to try again.
type startError struct {
	reason, message string
	retry           time.Time
}

func (e *startError) Error() string { return e.reason + ": " + e.message }

// spanStatus returns what a span records about a container that was not started. The
// runtime's messages are left out, because they quote the container's command.
func spanStatus(err error) string {
	var start *startError
	if errors.As(err, &start) && start.reason != reasonConfig {
		return start.reason
	}
	return err.Error()
}

// startContainers starts the plan's containers one after the other. changed is true if the
// runtime's state has changed.
func (w *worker) startContainers(ctx context.Context, p *corev1.Pod, state *cri.Pod, plan pod.Plan, at *wakeTimes) (changed bool) {
	for _, s := range plan.Start {
		name := s.Container.Name
		if h, ok := w.waiting[name]; ok && time.Now().Before(h.until) && !w.a.objects.changedSince(w.uid, h.since) {
			at.add(h.until)
			continue
		}
		if s.RestartCount > 0 && !w.usable(ctx, plan.SandboxID) {
			return true // the sandbox was lost together with the container: the next plan creates another
		}
		err := w.startContainer(ctx, p, state, plan.SandboxID, s)
		if ctx.Err() != nil {
			return true
		}
		if err == nil {
			delete(w.waiting, name)
			w.startedAt = time.Now()
			changed = true
			continue
		}
		h := hold{state: corev1.ContainerStateWaiting{Reason: reasonCreate, Message: err.Error()}, since: time.Now(), until: time.Now().Add(configRetry)}
		var start *startError
		var pull *image.Error
		switch {
		case errors.As(err, &start):
			h.state.Reason, h.state.Message = start.reason, start.message
			if !start.retry.IsZero() {
				h.until = start.retry
			}
			if start.reason == reasonRun || start.reason == reasonPostStart {
				changed = true // the runtime now has an ended instance
			}
		case errors.As(err, &pull):
			h.state.Reason, h.state.Message = pull.Reason, pull.Message
			if !pull.Retry.IsZero() {
				h.until = pull.Retry
			}
			if pull.Reason == image.ReasonPull {
				// Shown as ErrImagePull for a second; after that the image is in back-off.
				at.add(time.Now().Add(time.Second))
				w.waiting[name] = hold{state: h.state, since: h.since, until: time.Now().Add(time.Second)}
				w.show(ctx, p, plan)
				continue
			}
		}
		w.waiting[name] = h
		at.add(h.until)
		w.show(ctx, p, plan)
	}
	return changed
}

// usable reports whether a sandbox is still ready. If the runtime does not answer, the
// sandbox is assumed to be ready: starting a container in it will show.
func (w *worker) usable(ctx context.Context, sandbox string) bool {
	resp, err := w.a.cfg.Runtime.SandboxStatus(ctx, sandbox, false)
	if err != nil {
		return !cri.NotFound(err)
	}
	return resp.GetStatus().GetState() == runtimev1.PodSandboxState_SANDBOX_READY
}

// show publishes the pod's status between two steps of a sync.
func (w *worker) show(ctx context.Context, p *corev1.Pod, plan pod.Plan) {
	state, err := w.a.cfg.Runtime.Pod(ctx, string(w.uid))
	if err != nil {
		return
	}
	w.a.probes.Sync(w.a.base, p, state, podIP(p, state, w.a.cfg.HostIPs()), false)
	w.mu.Lock()
	traceparent := w.traceparent
	w.mu.Unlock()
	w.publish(p, state, w.a.probes.Verdicts(w.uid), w.held(plan), traceparent)
}

// startContainer pulls the image, creates the container, starts it and runs its postStart
// hook.
func (w *worker) startContainer(ctx context.Context, p *corev1.Pod, state *cri.Pod, sandbox string, s pod.Start) (err error) {
	c := s.Container
	ctx, span := tracer.Start(ctx, "start container "+c.Name, trace.WithAttributes(append(podAttributes(p), attribute.String("k8s.container.name", c.Name))...))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, spanStatus(err))
		}
		span.End()
	}()
	if err := w.a.awaitServices(ctx); err != nil {
		return err
	}
	sandboxConfig := w.sandboxConfig(p, state)
	found, err := w.a.images.Ensure(ctx, p, c, w.pullSecrets(ctx, p), sandboxConfig)
	if err != nil {
		return err
	}
	config, err := w.containerConfig(ctx, p, state, s, found)
	if err != nil {
		w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.Failed, "Error: %v", err)
		return &startError{reason: reasonConfig, message: err.Error()}
	}
	for _, old := range state.Instances(c.Name) {
		// Remove an instance that was created but never started, and one with the same
		// restart count: the runtime derives the container's unique name from that count.
		if old.State == cri.StateCreated || old.State == cri.StateExited && old.RestartCount == s.RestartCount {
			if err := w.a.cfg.Runtime.RemoveContainer(ctx, old.ID); err != nil {
				return &startError{reason: reasonCreate, message: cri.Message(err)}
			}
		}
	}
	call, cancel := settled(ctx)
	defer cancel()
	id, err := w.a.cfg.Runtime.CreateContainer(call, sandbox, config, sandboxConfig)
	if err != nil {
		w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.Failed, "Error: %s", cri.Message(err))
		return &startError{reason: reasonCreate, message: cri.Message(err)}
	}
	w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeNormal, event.Created, "Container created")
	if err := ctx.Err(); err != nil {
		return err // the next sync finds a container that was created but not started
	}
	if err := w.a.cfg.Runtime.StartContainer(call, id); err != nil {
		w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.Failed, "Error: %s", cri.Message(err))
		return &startError{reason: reasonRun, message: cri.Message(err), retry: time.Now()}
	}
	span.SetAttributes(attribute.String("container.id", id))
	w.linkLog(ctx, p, c.Name, id, filepath.Join(sandboxConfig.LogDirectory, config.LogPath))
	w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeNormal, event.Started, "Container started")
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return nil
	}
	return w.postStart(ctx, p, c, id, podIP(p, state, w.a.cfg.HostIPs()))
}

// linkLog creates the link through which log collectors find an instance's log.
func (w *worker) linkLog(ctx context.Context, p *corev1.Pod, container, id, path string) {
	if path == "" || w.linked[id] {
		return
	}
	w.linked[id] = true
	if err := w.a.logs.Link(p.Name, p.Namespace, container, id, path); err != nil {
		w.a.log.WarnContext(ctx, "container log was not linked", "pod", pod.Key(p), "container", container, "error", err)
	}
}

// sandboxConfig returns the configuration that the pod's sandbox was created with, as far
// as the runtime reads it again for containers.
func (w *worker) sandboxConfig(p *corev1.Pod, state *cri.Pod) *runtimev1.PodSandboxConfig {
	attempt := uint32(0)
	if box := state.Sandbox(); box != nil {
		attempt = box.Attempt
	}
	parent := ""
	if w.a.cfg.Cgroups != nil {
		parent = w.a.cfg.Cgroups.Pod(p)
	}
	return pod.SandboxConfig(p, w.a.cfg.Settings, attempt, parent)
}

// pullSecrets returns the pod's image pull secrets. Missing ones are left out, because the
// image may not need them.
func (w *worker) pullSecrets(ctx context.Context, p *corev1.Pod) []*corev1.Secret {
	var out []*corev1.Secret
	for _, ref := range p.Spec.ImagePullSecrets {
		s, err := w.a.objects.Secret(ctx, p.Namespace, ref.Name)
		if err != nil || s == nil {
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name)
			continue
		}
		out = append(out, s)
	}
	return out
}

// containerConfig assembles a container's CRI configuration.
func (w *worker) containerConfig(ctx context.Context, p *corev1.Pod, state *cri.Pod, s pod.Start, found *runtimev1.Image) (*runtimev1.ContainerConfig, error) {
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
	mounts, err := w.a.volumes.Mounts(p, c, pod.Lookup(env))
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
	return pod.ContainerConfig(p, w.a.cfg.Settings, pod.ContainerInput{
		Start: s, Env: env, Mounts: append(mounts, own...), ImageRef: found.Id, Image: found,
	})
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

// awaitServices waits until the Services are known, because their addresses become
// environment variables.
func (a *Agent) awaitServices(ctx context.Context) error {
	if a.cfg.ServicesSynced == nil {
		return nil
	}
	select {
	case <-a.cfg.ServicesSynced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(objectPatience):
		return &startError{reason: reasonConfig, message: "services have not yet been read at least once, cannot construct envvars", retry: time.Now().Add(time.Second)}
	}
}

func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	return nil
}

// Bounds on a termination message: bytes of the file, and bytes and lines of the log when
// it is used instead. They are the kubelet's.
const (
	maxTermination      = 4096
	maxTerminationLog   = 2048
	maxTerminationLines = 80
)

// terminationMessage reads the message that an ended container left.
func terminationMessage(c *cri.Container) string {
	if c.MessageHostPath == "" {
		return ""
	}
	text := readHead(c.MessageHostPath, maxTermination)
	if text == "" && c.MessageMode == string(corev1.TerminationMessageFallbackToLogsOnError) && c.ExitCode != 0 {
		return log.Tail(c.LogPath, maxTerminationLines, maxTerminationLog)
	}
	return text
}

// readHead reads at most limit bytes from the start of a file that a container may have put
// there. It follows no symbolic link and reads neither a FIFO nor a device.
func readHead(name string, limit int) string {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	buf := make([]byte, limit)
	n, _ := io.ReadFull(f, buf)
	return strings.ToValidUTF8(string(buf[:n]), "�")
}
