package admission

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// mirrorPod allows a node to create the mirrors of its static pods. A mirror may reference no
// other object, because a node may read whatever its pods reference.
func (p *NodeRestriction) mirrorPod(node string, pod *corev1.Pod) error {
	switch {
	case pod == nil || !isMirror(pod):
		return fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	case pod.Spec.NodeName != node:
		return fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node)
	case len(pod.OwnerReferences) > 1:
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node)
	case len(pod.OwnerReferences) == 0:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	}
	if err := p.mirrorOwner(node, &pod.OwnerReferences[0]); err != nil {
		return err
	}
	if kind := referenced(&pod.Spec); kind != "" {
		return fmt.Errorf("node %q can not create pods that reference %s", node, kind)
	}
	return nil
}

func (p *NodeRestriction) mirrorOwner(node string, owner *metav1.OwnerReference) error {
	if owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node {
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	}
	if owner.Controller == nil || !*owner.Controller {
		return fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node)
	}
	if owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion {
		return fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	obj, ok := p.State.Get("", "nodes", "", node)
	if !ok || obj.GetUID() != owner.UID {
		return fmt.Errorf("node %q UID mismatch: the owner reference names %q", node, owner.UID)
	}
	return nil
}

// referenced returns a resource that the pod refers to, or "" if it refers to none.
func referenced(spec *corev1.PodSpec) string {
	switch {
	case spec.ServiceAccountName != "":
		return "serviceaccounts"
	case len(spec.ImagePullSecrets) > 0:
		return "secrets"
	case len(spec.ResourceClaims) > 0:
		return "resourceclaims"
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if kind := referencedByEnv(c.EnvFrom, c.Env); kind != "" {
			return kind
		}
	}
	for i := range spec.EphemeralContainers {
		if kind := referencedByEnv(spec.EphemeralContainers[i].EnvFrom, spec.EphemeralContainers[i].Env); kind != "" {
			return kind
		}
	}
	for i := range spec.Volumes {
		if kind := referencedByVolume(&spec.Volumes[i].VolumeSource); kind != "" {
			return kind
		}
	}
	return ""
}

func referencedByEnv(from []corev1.EnvFromSource, env []corev1.EnvVar) string {
	for i := range from {
		switch {
		case from[i].SecretRef != nil:
			return "secrets"
		case from[i].ConfigMapRef != nil:
			return "configmaps"
		}
	}
	for i := range env {
		switch v := env[i].ValueFrom; {
		case v == nil:
		case v.SecretKeyRef != nil:
			return "secrets"
		case v.ConfigMapKeyRef != nil:
			return "configmaps"
		}
	}
	return ""
}

// referencedByVolume returns a resource that the volume refers to. It lists the sources that are
// known to reference nothing, so that a source added to the API later is refused.
func referencedByVolume(v *corev1.VolumeSource) string {
	switch {
	case v.EmptyDir != nil, v.HostPath != nil, v.DownwardAPI != nil, v.Image != nil, v.NFS != nil, v.GitRepo != nil:
		return ""
	case v.Secret != nil:
		return "secrets (via secret volumes)"
	case v.ConfigMap != nil:
		return "configmaps (via configmap volumes)"
	case v.PersistentVolumeClaim != nil:
		return "persistentvolumeclaims"
	case v.Ephemeral != nil:
		return "persistentvolumeclaims (via ephemeral volumes)"
	case v.CSI != nil:
		return "csidrivers (via CSI volumes)"
	case v.Projected == nil:
		return "objects of the volume plugins"
	}
	for i := range v.Projected.Sources {
		s := &v.Projected.Sources[i]
		switch {
		case s.ConfigMap != nil:
			return "configmaps (via projected volumes)"
		case s.Secret != nil:
			return "secrets (via projected volumes)"
		case s.ServiceAccountToken != nil:
			return "serviceaccounts (via projected volumes)"
		case s.DownwardAPI == nil:
			return "objects (via projected volumes)"
		}
	}
	return ""
}

// sameResourceClaims reports whether what the scheduler and the claim controller
// wrote about a pod's resource claims, which grants its node access to them, is
// unchanged.
func sameResourceClaims(a, b *corev1.PodStatus) bool {
	return equality.Semantic.DeepEqual(a.ResourceClaimStatuses, b.ResourceClaimStatuses) &&
		equality.Semantic.DeepEqual(a.ExtendedResourceClaimStatus, b.ExtendedResourceClaimStatus) &&
		equality.Semantic.DeepEqual(a.NodeAllocatableResourceClaimStatuses, b.NodeAllocatableResourceClaimStatuses)
}
