package pod

import (
	"encoding/hex"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Annotations of static pods and their mirrors. They are the kubelet's.
const (
	// AnnotationHash identifies a static pod's manifest, AnnotationSource says where the
	// pod comes from, and AnnotationSeen when its manifest was read.
	AnnotationHash   = "kubernetes.io/config.hash"
	AnnotationSource = "kubernetes.io/config.source"
	AnnotationSeen   = "kubernetes.io/config.seen"
	// SourceFile is the source of a pod that was read from a file.
	SourceFile = "file"
)

// IsMirror reports whether a pod in the API only shows a static pod of its node. Its
// containers have the static pod's UID, not the mirror's.
func IsMirror(p *corev1.Pod) bool {
	_, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
	return mirror
}

// IsStatic reports whether a pod comes from a manifest on its node. A mirror is not static.
func IsStatic(p *corev1.Pod) bool {
	return p.Annotations[AnnotationSource] == SourceFile && !IsMirror(p)
}

// IsStaticUID reports whether a UID is that of a static pod: the digest of its manifest, in
// hexadecimal. The UIDs of the API contain dashes.
func IsStaticUID(uid types.UID) bool {
	sum, err := hex.DecodeString(string(uid))
	return err == nil && len(sum) == 16
}

// systemCritical is the priority from which a pod is critical to the cluster.
const systemCritical = 2000000000

// IsCritical reports whether a node must keep a pod before all others: a static pod, its
// mirror, or a pod with a system priority. Such a pod is not evicted for lack of resources.
func IsCritical(p *corev1.Pod) bool {
	return IsStatic(p) || IsMirror(p) || p.Spec.Priority != nil && *p.Spec.Priority >= systemCritical
}
