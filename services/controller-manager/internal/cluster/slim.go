package cluster

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// transform returns what the cache of a whole kind drops from its objects.
func transform[T client.Object]() func(T) T {
	for _, f := range []any{slimPod, slimNode} {
		if f, ok := f.(func(T) T); ok {
			return f
		}
	}
	return slim[T]
}

// slimMetadata keeps what the garbage collector's graph needs.
func slimMetadata(m *metav1.PartialObjectMetadata) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion,
		OwnerReferences: m.OwnerReferences, Finalizers: m.Finalizers, DeletionTimestamp: m.DeletionTimestamp,
	}}
}

// slim drops managedFields, which the server keeps when an update has none. The
// object may be written back.
func slim[T client.Object](obj T) T {
	obj.SetManagedFields(nil)
	return obj
}

// slimPod keeps of a pod what controllers decide on: metadata; where it runs, its
// ports, tolerations, claims and restart policies; phase, conditions, addresses,
// and how its containers ended. It is never written back: pods are patched.
func slimPod(p *corev1.Pod) *corev1.Pod {
	p.ManagedFields = nil
	spec := corev1.PodSpec{
		NodeName:      p.Spec.NodeName,
		Hostname:      p.Spec.Hostname,
		Subdomain:     p.Spec.Subdomain,
		HostNetwork:   p.Spec.HostNetwork,
		RestartPolicy: p.Spec.RestartPolicy,
		Tolerations:   p.Spec.Tolerations,
		// Gates and the grace period are small, and show why a pod waits.
		SchedulingGates:               p.Spec.SchedulingGates,
		TerminationGracePeriodSeconds: p.Spec.TerminationGracePeriodSeconds,
		Containers:                    slimContainers(p.Spec.Containers),
		InitContainers:                slimContainers(p.Spec.InitContainers),
	}
	if target := TargetNode(p); target != "" && p.Spec.NodeName == "" {
		spec.Affinity = onNode(target)
	}
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim == nil && v.Ephemeral == nil {
			continue
		}
		kept := corev1.Volume{Name: v.Name}
		kept.PersistentVolumeClaim = v.PersistentVolumeClaim
		if v.Ephemeral != nil {
			kept.Ephemeral = &corev1.EphemeralVolumeSource{}
		}
		spec.Volumes = append(spec.Volumes, kept)
	}
	p.Spec = spec
	p.Status.ContainerStatuses = slimStatuses(p.Status.ContainerStatuses)
	p.Status.InitContainerStatuses = slimStatuses(p.Status.InitContainerStatuses)
	p.Status.EphemeralContainerStatuses, p.Status.ResourceClaimStatuses = nil, nil
	p.Status.AllocatedResources, p.Status.Resources = nil, nil
	return p
}

// TargetNode returns the one node that a pod's required node affinity names, as that of
// a DaemonSet's pod does, or "" if it does not name exactly one.
func TargetNode(p *corev1.Pod) string {
	if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil {
		return ""
	}
	required := p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil {
		return ""
	}
	for _, term := range required.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

func onNode(name string) *corev1.Affinity {
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
			{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{name}},
		}}},
	}}}
}

// slimContainers keeps the containers with ports and the sidecars.
func slimContainers(containers []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range containers {
		if c := &containers[i]; len(c.Ports) > 0 || c.RestartPolicy != nil {
			out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return slices.Clip(out)
}

// slimStatuses keeps whether containers are ready, how they ended and how often they
// were restarted.
func slimStatuses(statuses []corev1.ContainerStatus) []corev1.ContainerStatus {
	for i := range statuses {
		s := &statuses[i]
		kept := corev1.ContainerStatus{Name: s.Name, RestartCount: s.RestartCount, Ready: s.Ready}
		if t := s.State.Terminated; t != nil {
			kept.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: t.ExitCode, FinishedAt: t.FinishedAt}
		}
		statuses[i] = kept
	}
	return statuses
}

// slimNode drops the list of images.
func slimNode(n *corev1.Node) *corev1.Node {
	n.ManagedFields = nil
	n.Status.Images = nil
	return n
}
