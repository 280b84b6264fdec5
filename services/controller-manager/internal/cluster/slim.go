package cluster

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
)

// slim drops managedFields, which the server keeps when an update has none. The
// object may be written back.
func slim[T client.Object](obj T) T {
	obj.SetManagedFields(nil)
	return obj
}

// slimPod keeps of a pod what controllers decide on: metadata, the whole status,
// and of the spec where it runs, its ports, tolerations, claims and restart
// policies.
func slimPod(p *corev1.Pod) *corev1.Pod {
	p.ManagedFields = nil
	spec := corev1.PodSpec{
		NodeName:      p.Spec.NodeName,
		Hostname:      p.Spec.Hostname,
		Subdomain:     p.Spec.Subdomain,
		HostNetwork:   p.Spec.HostNetwork,
		RestartPolicy: p.Spec.RestartPolicy,
		Tolerations:   p.Spec.Tolerations,
		// Gates and the grace period are small, and say why a pod waits.
		SchedulingGates:               p.Spec.SchedulingGates,
		TerminationGracePeriodSeconds: p.Spec.TerminationGracePeriodSeconds,
		Containers:                    slimContainers(p.Spec.Containers),
		InitContainers:                slimContainers(p.Spec.InitContainers),
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
	return p
}

func slimContainers(containers []corev1.Container) []corev1.Container {
	if len(containers) == 0 {
		return nil
	}
	out := make([]corev1.Container, len(containers))
	for i := range containers {
		out[i] = corev1.Container{
			Name: containers[i].Name, Ports: containers[i].Ports, RestartPolicy: containers[i].RestartPolicy,
		}
	}
	return out
}

// slimNode drops the list of images.
func slimNode(n *corev1.Node) *corev1.Node {
	n.ManagedFields = nil
	n.Status.Images = nil
	return n
}

// slimSecret keeps whether a secret has a token, but not the token: such secrets
// are written by patch.
func slimSecret(s *corev1.Secret) *corev1.Secret {
	s.ManagedFields = nil
	if len(s.Data[corev1.ServiceAccountTokenKey]) > 0 {
		s.Data[corev1.ServiceAccountTokenKey] = []byte("set")
	}
	return s
}
