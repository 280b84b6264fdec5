// Package status derives a pod's PodStatus from the runtime's state and writes it to the
// API.
//
// It must never write a status that does not differ from the last one, write an older
// status after a newer one, or move a pod out of the phases Succeeded and Failed.
package status

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
)

// View is the input of a status.
type View struct {
	Pod     *corev1.Pod
	Runtime *cri.Pod
	Now     time.Time
	// RuntimeName is the prefix of container IDs in the status, such as "containerd".
	RuntimeName string
	HostIPs     []string
	// Waiting explains why containers that should be running are not.
	Waiting map[string]corev1.ContainerStateWaiting
	// Started and Ready return the probes' verdicts on running instances.
	Started, Ready func(id string) bool
	// TerminationMessage returns the termination message of an ended instance.
	TerminationMessage func(c *cri.Container) string
	// Ended, unless nil, is why the node ends the pod. The phase will be Failed.
	Ended *pod.Ending
	// Resize is the state of a resize of the pod, whose spec holds the allocated resources.
	Resize Resize
	// Refused, unless nil, is why the node never admitted the pod. It then has no
	// containers to report.
	Refused *pod.Refusal
	// Finished is true if no container of the pod will start again.
	Finished bool
}

// Resize is the state of an in-place resize.
type Resize struct {
	// Pending, unless nil, is why the desired resources are not allocated.
	Pending *pod.Refusal
	// Active is true while a running container does not have its allocated resources. Error
	// is why they could not be set, or "".
	Active bool
	Error  string
}

// Make returns the status of a pod.
func Make(v View) corev1.PodStatus {
	old := &v.Pod.Status
	out := corev1.PodStatus{
		ObservedGeneration: v.Pod.Generation,
		QOSClass:           pod.QOS(v.Pod),
		NominatedNodeName:  old.NominatedNodeName,
		Reason:             old.Reason,
		Message:            old.Message,
		StartTime:          old.StartTime,
		Resize:             old.Resize,

		ResourceClaimStatuses:       old.ResourceClaimStatuses,
		ExtendedResourceClaimStatus: old.ExtendedResourceClaimStatus,
	}
	if out.StartTime == nil {
		now := metav1.NewTime(v.Now.Truncate(time.Second))
		out.StartTime = &now
	}
	switch {
	case v.Refused != nil:
		out.Reason, out.Message = v.Refused.Reason, v.Refused.Message
	case v.Ended != nil:
		out.Reason, out.Message = v.Ended.Reason, v.Ended.Message
	}
	if v.refused() {
		out.Phase = corev1.PodFailed
		v.addresses(&out)
		out.Conditions = slices.Clone(old.Conditions) // conditions of other writers are kept; the node adds none
		return out
	}
	initialized := true
	for i := range v.Pod.Spec.InitContainers {
		c := &v.Pod.Spec.InitContainers[i]
		s := v.container(c, pod.Init, initialized)
		out.InitContainerStatuses = append(out.InitContainerStatuses, s)
		initialized = initialized && initDone(c, &s)
	}
	begun := v.begun()
	for i := range v.Pod.Spec.Containers {
		out.ContainerStatuses = append(out.ContainerStatuses, v.container(&v.Pod.Spec.Containers[i], pod.Regular, initialized || begun))
	}
	for i := range v.Pod.Spec.EphemeralContainers {
		c := (*corev1.Container)(&v.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		s := v.container(c, pod.Ephemeral, true)
		s.Started, s.Ready = nil, false // an ephemeral container has no probes and counts for nothing
		out.EphemeralContainerStatuses = append(out.EphemeralContainerStatuses, s)
	}
	out.Phase = phase(v.Pod, &out, v.Finished, initialized || begun)
	if v.Ended != nil {
		out.Phase = corev1.PodFailed
	}
	// A pod has not ended before all its containers have.
	if (out.Phase == corev1.PodFailed || out.Phase == corev1.PodSucceeded) && len(v.Runtime.Running()) > 0 {
		out.Phase = old.Phase
		if out.Phase == "" {
			out.Phase = corev1.PodPending
		}
	}
	if pod.Terminal(v.Pod) {
		out.Phase = old.Phase
	}
	v.addresses(&out)
	out.Conditions = v.conditions(&out)
	// Conditions name containers in the order of the spec, so sort only now. Init
	// containers keep the order of the spec.
	for _, list := range [][]corev1.ContainerStatus{out.ContainerStatuses, out.EphemeralContainerStatuses} {
		slices.SortFunc(list, func(a, b corev1.ContainerStatus) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

// refused reports whether the node refused the pod, in this run of the agent or an earlier
// one.
func (v View) refused() bool {
	old := &v.Pod.Status
	return v.Refused != nil || old.Phase == corev1.PodFailed && v.Runtime.Sandbox() == nil && len(old.ContainerStatuses)+len(old.InitContainerStatuses) == 0
}

func (v View) begun() bool {
	box := v.Runtime.Sandbox()
	for i := range v.Pod.Spec.Containers {
		if c := v.Runtime.Latest(v.Pod.Spec.Containers[i].Name); c != nil && c.State != cri.StateCreated && (box == nil || c.SandboxID == box.ID) {
			return true
		}
	}
	return false
}

func (v View) addresses(out *corev1.PodStatus) {
	if len(v.HostIPs) > 0 {
		out.HostIP = v.HostIPs[0]
		for _, ip := range v.HostIPs {
			out.HostIPs = append(out.HostIPs, corev1.HostIP{IP: ip})
		}
	}
	var ips []string
	box := v.Runtime.Sandbox()
	switch {
	case v.Pod.Spec.HostNetwork && box != nil:
		ips = v.HostIPs
	case box != nil && box.Ready:
		ips = box.IPs
	}
	if len(ips) == 0 && (pod.Terminal(v.Pod) || v.Finished || v.Ended != nil || v.Refused != nil || v.Pod.DeletionTimestamp != nil) {
		for _, ip := range v.Pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
	}
	if len(ips) > 0 {
		out.PodIP = ips[0]
		for _, ip := range ips {
			out.PodIPs = append(out.PodIPs, corev1.PodIP{IP: ip})
		}
	}
}

// initDone reports whether an init container no longer blocks the ones after it.
func initDone(c *corev1.Container, s *corev1.ContainerStatus) bool {
	if pod.IsSidecar(c) {
		return s.Started != nil && *s.Started || s.State.Running == nil && s.LastTerminationState.Terminated != nil
	}
	return s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
}

// phase returns the pod's phase, computed as the kubelet does.
func phase(p *corev1.Pod, s *corev1.PodStatus, finished, initialized bool) corev1.PodPhase {
	pendingInit, failedInit := 0, 0
	for i := range p.Spec.InitContainers {
		c, st := &p.Spec.InitContainers[i], &s.InitContainerStatuses[i]
		switch {
		case pod.IsSidecar(c):
			if !initialized && !initDone(c, st) {
				pendingInit++
			}
		case st.State.Terminated != nil:
			if st.State.Terminated.ExitCode != 0 {
				failedInit++
				if p.Spec.RestartPolicy != corev1.RestartPolicyNever {
					pendingInit++
				}
			}
		case !initialized || st.State.Running != nil:
			pendingInit++
		}
	}
	if failedInit > 0 && (p.Spec.RestartPolicy == corev1.RestartPolicyNever || finished) {
		return corev1.PodFailed
	}
	if pendingInit > 0 {
		return corev1.PodPending
	}
	running, waiting, stopped, succeeded := 0, 0, 0, 0
	for i := range s.ContainerStatuses {
		st := &s.ContainerStatuses[i]
		switch {
		case st.State.Running != nil:
			running++
		case st.State.Terminated != nil:
			stopped++
			if st.State.Terminated.ExitCode == 0 {
				succeeded++
			}
		case st.LastTerminationState.Terminated != nil:
			stopped++
		default:
			waiting++
		}
	}
	switch {
	case waiting > 0 && finished:
		return corev1.PodFailed
	case waiting > 0:
		return corev1.PodPending
	case running > 0:
		return corev1.PodRunning
	case stopped == succeeded && (finished || p.Spec.RestartPolicy != corev1.RestartPolicyAlways):
		return corev1.PodSucceeded
	case finished || p.Spec.RestartPolicy == corev1.RestartPolicyNever:
		return corev1.PodFailed
	}
	return corev1.PodRunning
}

// Equal reports whether two statuses are equal as stored: times are compared in seconds,
// and conditions in any order.
func Equal(a, b *corev1.PodStatus) bool {
	x, errX := normal(a).Marshal()
	y, errY := normal(b).Marshal()
	return errX == nil && errY == nil && string(x) == string(y)
}

func normal(s *corev1.PodStatus) *corev1.PodStatus {
	out := s.DeepCopy()
	sortConditions(out.Conditions)
	return out
}

func joinNames(names []string) string { return "[" + strings.Join(names, " ") + "]" }
