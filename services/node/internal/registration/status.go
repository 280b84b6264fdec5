package registration

import (
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func revision(n *corev1.Node) uint64 {
	v, _ := strconv.ParseUint(n.ResourceVersion, 10, 64)
	return v
}

func newer(a, b *corev1.Node) bool { return revision(a) > revision(b) }

// status returns the status that the node should have.
func (r *Registration) status(current *corev1.Node, now time.Time) *corev1.NodeStatus {
	out := current.Status.DeepCopy()
	m := r.cfg.Machine
	out.Capacity, out.Allocatable = resources(m, current.Status.Capacity)
	if r.cfg.Devices != nil {
		capacity, allocatable := r.cfg.Devices()
		maps.Copy(out.Capacity, capacity)
		maps.Copy(out.Allocatable, allocatable)
	}
	out.NodeInfo = m.Info
	out.NodeInfo.ContainerRuntimeVersion = r.cfg.Health.Version()
	if out.NodeInfo.ContainerRuntimeVersion == "" {
		out.NodeInfo.ContainerRuntimeVersion = current.Status.NodeInfo.ContainerRuntimeVersion
	}
	if !r.cfg.External || len(out.Addresses) == 0 {
		out.Addresses = []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: r.cfg.Address},
			{Type: corev1.NodeHostName, Address: r.cfg.Name},
		}
	}
	if r.cfg.Health.Up() {
		out.RuntimeHandlers, out.Features = r.cfg.Health.runtimeFeatures()
	}
	if r.cfg.Images != nil {
		out.Images = r.cfg.Images()
	}
	for _, c := range r.conditions() {
		set(out, c, now)
	}
	return out
}

// resources returns a node's capacity and allocatable resources. Extended resources that
// others have added to the capacity are kept and are fully allocatable.
func resources(m *Machine, reported corev1.ResourceList) (capacity, allocatable corev1.ResourceList) {
	capacity, allocatable = m.Capacity.DeepCopy(), m.Allocatable()
	for name, q := range reported {
		if _, own := m.Capacity[name]; !own {
			capacity[name], allocatable[name] = q.DeepCopy(), q.DeepCopy()
		}
	}
	return capacity, allocatable
}

// conditions returns the node's own conditions, worded as the kubelet's.
func (r *Registration) conditions() []corev1.NodeCondition {
	var pressure []corev1.NodeConditionType
	if r.cfg.Pressure != nil {
		pressure = r.cfg.Pressure()
	}
	problem, network := r.cfg.Health.state()
	list := []corev1.NodeCondition{
		pressureCondition(corev1.NodeMemoryPressure, pressure,
			"KubeletHasInsufficientMemory", "kubelet has insufficient memory available",
			"KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		pressureCondition(corev1.NodeDiskPressure, pressure,
			"KubeletHasDiskPressure", "kubelet has disk pressure",
			"KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		pressureCondition(corev1.NodePIDPressure, pressure,
			"KubeletHasInsufficientPID", "kubelet has insufficient PID available",
			"KubeletHasSufficientPID", "kubelet has sufficient PID available"),
	}
	unreachable := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "PodNetworkReady", Message: "pod network is ready"}
	if problem == "" && network != "" {
		unreachable.Status, unreachable.Reason, unreachable.Message = corev1.ConditionTrue, "PodNetworkNotReady", network
	}
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	switch {
	case r.cfg.ShuttingDown != nil && r.cfg.ShuttingDown():
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "KubeletNotReady", "node is shutting down"
	case problem != "":
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "KubeletNotReady", "container runtime is down: "+problem
	case network != "":
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "KubeletNotReady", "container runtime network not ready: "+network
	}
	if problem != "" {
		return append(list, ready) // the network's state is unknown
	}
	return append(list, unreachable, ready)
}

func pressureCondition(kind corev1.NodeConditionType, pressure []corev1.NodeConditionType, badReason, badText, goodReason, goodText string) corev1.NodeCondition {
	if slices.Contains(pressure, kind) {
		return corev1.NodeCondition{Type: kind, Status: corev1.ConditionTrue, Reason: badReason, Message: badText}
	}
	return corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: goodReason, Message: goodText}
}

// set sets a condition in a status.
func set(s *corev1.NodeStatus, c corev1.NodeCondition, now time.Time) {
	at := metav1.NewTime(now.Truncate(time.Second))
	c.LastHeartbeatTime, c.LastTransitionTime = at, at
	for i := range s.Conditions {
		if s.Conditions[i].Type != c.Type {
			continue
		}
		if s.Conditions[i].Status == c.Status {
			c.LastTransitionTime = s.Conditions[i].LastTransitionTime
		}
		s.Conditions[i] = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}
