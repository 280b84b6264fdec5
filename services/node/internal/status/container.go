package status

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
)

// Waiting and termination reasons that kubectl shows.
const (
	ReasonContainerCreating = "ContainerCreating"
	ReasonPodInitializing   = "PodInitializing"
	reasonUnknown           = "ContainerStatusUnknown"
)

// container returns the status of one container. initialized is true if the
// init containers that the container must wait for are done.
func (v View) container(c *corev1.Container, role pod.Role, initialized bool) corev1.ContainerStatus {
	init := role == pod.Init // or a sidecar
	old := pod.Status(v.Pod, c.Name)
	out := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
	instances := v.Runtime.Instances(c.Name)
	notStarted := false
	if len(instances) == 0 {
		out.State.Waiting = v.waiting(c, initialized, init)
		if old != nil {
			out.RestartCount, out.LastTerminationState = old.RestartCount, old.LastTerminationState
			out.ImageID, out.ContainerID = old.ImageID, old.ContainerID
			v.lost(&out, old, role)
		}
		if out.State.Waiting != nil {
			out.Started = &notStarted
		}
		if out.State.Terminated != nil {
			out.Ready = init && out.State.Terminated.ExitCode == 0 && !pod.IsSidecar(c)
			out.Started = &notStarted
		}
		v.mounts(&out, c)
		return out
	}
	now := instances[0]
	out.RestartCount = int32(now.RestartCount)
	out.ContainerID = v.id(now)
	if now.ImageRef != "" {
		out.ImageID = now.ImageRef
	}
	if now.Image != "" {
		out.Image = imageName(c.Image, now.Image)
	}
	previous := instances[1:]
	switch now.State {
	case cri.StateRunning:
		out.State.Running = &corev1.ContainerStateRunning{StartedAt: seconds(now.StartedAt)}
		started := v.Started(now.ID)
		out.Started = &started
		out.Ready = started && v.Ready(now.ID)
		if init && !pod.IsSidecar(c) {
			out.Started, out.Ready = &started, false
		}
	case cri.StateExited:
		out.State.Terminated = v.terminated(now)
		out.Started = &notStarted
		out.Ready = init && !pod.IsSidecar(c) && now.ExitCode == 0
	case cri.StateCreated:
		out.State.Waiting = v.waiting(c, initialized, init)
		out.Started = &notStarted
	default:
		out.State.Terminated = &corev1.ContainerStateTerminated{
			ContainerID: out.ContainerID, ExitCode: 137, Reason: reasonUnknown,
			Message: "The container could not be located when the pod was terminated",
		}
		out.Started = &notStarted
	}
	// A container in back-off is reported as waiting; how it ended moves to its last state.
	if w, held := v.Waiting[c.Name]; held && out.State.Terminated != nil && !v.Finished && v.Ended == nil {
		out.LastTerminationState.Terminated = out.State.Terminated
		out.State = corev1.ContainerState{Waiting: &w}
		out.Ready = false
	} else if len(previous) > 0 && previous[0].State == cri.StateExited {
		out.LastTerminationState.Terminated = v.terminated(previous[0])
	} else if old != nil && old.LastTerminationState.Terminated != nil && old.LastTerminationState.Terminated.ContainerID != out.ContainerID {
		out.LastTerminationState = old.LastTerminationState
	}
	if out.State.Running != nil || out.State.Terminated != nil {
		v.resources(&out, c, now)
	}
	if u := now.User; u != nil {
		out.User = &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: u.Uid, GID: u.Gid, SupplementalGroups: u.SupplementalGroups}}
	}
	v.mounts(&out, c)
	return out
}

// waiting explains why a container that was never started has not been started.
func (v View) waiting(c *corev1.Container, initialized, init bool) *corev1.ContainerStateWaiting {
	if w, ok := v.Waiting[c.Name]; ok {
		return &w
	}
	if len(v.Pod.Spec.InitContainers) > 0 && (init || !initialized) {
		return &corev1.ContainerStateWaiting{Reason: ReasonPodInitializing}
	}
	return &corev1.ContainerStateWaiting{Reason: ReasonContainerCreating}
}

// lost handles a container that was reported before but that the runtime no longer has.
func (v View) lost(out, old *corev1.ContainerStatus, role pod.Role) {
	over := role == pod.Ephemeral || v.Finished || v.Ended != nil || v.Refused != nil || v.Pod.DeletionTimestamp != nil || pod.Terminal(v.Pod)
	switch {
	case old.State.Terminated != nil:
		if over {
			out.State = old.State
			return
		}
		out.LastTerminationState.Terminated = old.State.Terminated
	case old.State.Running != nil:
		t := &corev1.ContainerStateTerminated{
			ExitCode: 137, Reason: reasonUnknown, ContainerID: old.ContainerID,
			Message: "The container could not be located when the pod was terminated",
		}
		if over {
			out.State = corev1.ContainerState{Terminated: t}
			return
		}
		t.Message = "The container could not be located when the pod was deleted.  The container used to be Running"
		out.LastTerminationState.Terminated = t
	case old.State.Waiting != nil && over:
		out.State = old.State
	}
}

func (v View) terminated(c *cri.Container) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message, ContainerID: v.id(c),
		StartedAt: seconds(c.StartedAt), FinishedAt: seconds(c.FinishedAt),
	}
	if t.Reason == "" {
		t.Reason = "Error"
		if c.ExitCode == 0 {
			t.Reason = "Completed"
		}
	}
	if v.TerminationMessage != nil {
		if message := v.TerminationMessage(c); message != "" {
			if t.Message != "" {
				t.Message += ": "
			}
			t.Message += message
		}
	}
	if t.Message == "" {
		t.Message = v.reportedMessage(t.ContainerID)
	}
	return t
}

// reportedMessage returns the message that was already reported for an ended instance: the
// file that it came from may be gone.
func (v View) reportedMessage(id string) string {
	for _, list := range [][]corev1.ContainerStatus{v.Pod.Status.InitContainerStatuses, v.Pod.Status.ContainerStatuses, v.Pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			for _, t := range []*corev1.ContainerStateTerminated{list[i].State.Terminated, list[i].LastTerminationState.Terminated} {
				if t != nil && t.ContainerID == id {
					return t.Message
				}
			}
		}
	}
	return ""
}

func (v View) id(c *cri.Container) string { return v.RuntimeName + "://" + c.ID }

// resources reports the allocated resources of a started container, and the actual ones as
// far as the runtime reports them.
func (v View) resources(out *corev1.ContainerStatus, c *corev1.Container, inst *cri.Container) {
	if len(c.Resources.Requests) > 0 {
		out.AllocatedResources = c.Resources.Requests
	}
	out.Resources = &corev1.ResourceRequirements{Requests: c.Resources.Requests, Limits: c.Resources.Limits}
	if inst.State == cri.StateRunning && inst.Resources != nil {
		*out.Resources = pod.Actual(v.Pod, c, inst.Resources)
	}
}

// mounts reports a container's volume mounts: recursive read-only as the runtime made them.
func (v View) mounts(out *corev1.ContainerStatus, c *corev1.Container) {
	recursive := map[string]bool{}
	if inst := v.Runtime.Latest(c.Name); inst != nil {
		for _, m := range inst.Mounts {
			recursive[m.ContainerPath] = m.RecursiveReadOnly
		}
	}
	for _, m := range c.VolumeMounts {
		st := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if recursive[m.MountPath] {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			st.RecursiveReadOnly = &mode
		}
		out.VolumeMounts = append(out.VolumeMounts, st)
	}
}

// imageName returns the name of a running image: the runtime's, unless the runtime knows
// the image only by its digest.
func imageName(spec, runtime string) string {
	if len(runtime) > 7 && runtime[:7] == "sha256:" {
		return spec
	}
	return runtime
}

func seconds(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t.Truncate(time.Second))
}
