package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// QOS returns a pod's quality of service, which follows from its requests and limits of CPU and
// memory: Guaranteed if every container has limits for both and equal requests, BestEffort if no
// container has any, and Burstable otherwise. If the pod as a whole has resources, only they count.
func QOS(s *corev1.PodSpec) corev1.PodQOSClass {
	guaranteed, asked := true, false
	count := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := positive(r.Requests, name), positive(r.Limits, name)
			asked = asked || request != nil || limit != nil
			if limit == nil || request != nil && request.Cmp(*limit) != 0 {
				guaranteed = false
			}
		}
	}
	if s.Resources != nil && resourcehelper.IsPodLevelResourcesSet(&corev1.Pod{Spec: corev1.PodSpec{Resources: s.Resources}}) {
		count(s.Resources)
	} else {
		for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
			for i := range list {
				count(&list[i].Resources)
			}
		}
	}
	switch {
	case !asked:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func positive(list corev1.ResourceList, name corev1.ResourceName) *resource.Quantity {
	if q, ok := list[name]; ok && q.Sign() > 0 {
		return &q
	}
	return nil
}
