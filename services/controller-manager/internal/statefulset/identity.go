package statefulset

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/podtemplate"
)

// noOrdinal is the ordinal of a pod whose name is not one of the set's.
const noOrdinal = -1

// ordinal returns the number in a pod's name, or noOrdinal.
func ordinal(set *appsv1.StatefulSet, name string) int {
	rest, ok := strings.CutPrefix(name, set.Name+"-")
	if !ok || rest == "" || rest != "0" && rest[0] == '0' {
		return noOrdinal
	}
	n, err := strconv.ParseInt(rest, 10, 32)
	if err != nil || n < 0 {
		return noOrdinal
	}
	return int(n)
}

func isMember(set *appsv1.StatefulSet, p *corev1.Pod) bool { return ordinal(set, p.Name) != noOrdinal }

func podName(set *appsv1.StatefulSet, n int) string { return set.Name + "-" + strconv.Itoa(n) }

func claimName(set *appsv1.StatefulSet, template string, n int) string {
	return template + "-" + podName(set, n)
}

// podOfClaim returns the name of the pod that a claim of the set belongs to, or "" if the
// claim's name is not of the set.
func podOfClaim(set *appsv1.StatefulSet, claim string) string {
	for i := range set.Spec.VolumeClaimTemplates {
		rest, ok := strings.CutPrefix(claim, set.Spec.VolumeClaimTemplates[i].Name+"-")
		if ok && ordinal(set, rest) != noOrdinal {
			return rest
		}
	}
	return ""
}

// isClaimOf reports whether name is that of one of the set's claims.
func isClaimOf(set *appsv1.StatefulSet, name string) bool {
	return podOfClaim(set, name) != ""
}

// start returns the ordinal of the set's first pod.
func start(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals == nil {
		return 0
	}
	return int(set.Spec.Ordinals.Start)
}

func replicas(set *appsv1.StatefulSet) int {
	if set.Spec.Replicas == nil {
		return 1
	}
	return int(*set.Spec.Replicas)
}

// inRange reports whether the set wants a pod with ordinal n.
func inRange(set *appsv1.StatefulSet, n int) bool {
	return n >= start(set) && n < start(set)+replicas(set)
}

// newPod returns the pod with ordinal n of a revision and its template.
func newPod(set *appsv1.StatefulSet, template *corev1.PodTemplateSpec, revision string, n int) *corev1.Pod {
	p := podtemplate.Pod(template, set)
	p.GenerateName, p.Name = "", podName(set, n)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[appsv1.StatefulSetRevisionLabel] = revision
	maps.Copy(p.Labels, identityLabels(p.Name))
	p.Spec.Hostname, p.Spec.Subdomain = p.Name, set.Spec.ServiceName
	for i := range set.Spec.VolumeClaimTemplates {
		name := set.Spec.VolumeClaimTemplates[i].Name
		p.Spec.Volumes = slices.DeleteFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(set, name, n)},
		}})
	}
	return p
}

// identityLabels returns the labels that hold a pod's name and ordinal.
func identityLabels(name string) map[string]string {
	return map[string]string{
		appsv1.StatefulSetPodNameLabel: name,
		appsv1.PodIndexLabel:           name[strings.LastIndexByte(name, '-')+1:],
	}
}

// lacksIdentity reports whether a pod lacks an identity label, as one that was adopted
// or whose labels were edited may.
func lacksIdentity(p *corev1.Pod) bool {
	for k, v := range identityLabels(p.Name) {
		if p.Labels[k] != v {
			return true
		}
	}
	return false
}

const identityPatchType = types.StrategicMergePatchType

func identityPatch(p *corev1.Pod) []byte {
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID, "labels": identityLabels(p.Name)}})
	if err != nil {
		panic("statefulset: " + err.Error()) // strings always marshal
	}
	return data
}

// newClaims returns the claims of the pod with ordinal n.
func newClaims(set *appsv1.StatefulSet, n int) []*corev1.PersistentVolumeClaim {
	var out []*corev1.PersistentVolumeClaim
	for i := range set.Spec.VolumeClaimTemplates {
		c := set.Spec.VolumeClaimTemplates[i].DeepCopy()
		c.Name, c.Namespace = claimName(set, c.Name, n), set.Namespace
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, set.Spec.Selector.MatchLabels)
		c.OwnerReferences = claimOwners(set, c, n, nil)
		c.Status = corev1.PersistentVolumeClaimStatus{}
		out = append(out, c)
	}
	return out
}

// claimOwners returns the owner references that the retention policy requires for claim
// c of the pod with ordinal n: the set, so that the claim is deleted with it, or a pod
// that is being scaled away, so that the claim is deleted with that. Nothing is added to
// a claim that another controller owns.
func claimOwners(set *appsv1.StatefulSet, c *corev1.PersistentVolumeClaim, n int, pod *corev1.Pod) []metav1.OwnerReference {
	name, foreign := podName(set, n), false
	refs := slices.DeleteFunc(slices.Clone(c.OwnerReferences), func(ref metav1.OwnerReference) bool {
		ours := ref.Kind == "StatefulSet" && ref.Name == set.Name || ref.Kind == "Pod" && ref.Name == name
		if !ours && ref.Controller != nil && *ref.Controller {
			foreign = true
		}
		return ours
	})
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil || foreign {
		return refs
	}
	const remove = appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	var o metav1.OwnerReference
	switch {
	case policy.WhenScaled == remove && !inRange(set, n):
		if pod == nil {
			return refs
		}
		o = owner.Reference(pod)
	case policy.WhenDeleted == remove && (inRange(set, n) || policy.WhenScaled != remove):
		o = owner.Reference(set)
	default:
		return refs
	}
	return append(refs, o)
}
