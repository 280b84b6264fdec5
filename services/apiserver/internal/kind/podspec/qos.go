package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// QOS returns a pod's quality of service, which follows from its requests and limits of CPU and
// memory: Guaranteed if every container has limits for both and equal requests, BestEffort if no
// container has any, and Burstable otherwise.
func QOS(s *corev1.PodSpec) corev1.PodQOSClass {
	guaranteed, asked := true, false
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			r := &list[i].Resources
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				request, limit := positive(r.Requests, name), positive(r.Limits, name)
				asked = asked || request != nil || limit != nil
				if limit == nil || request != nil && request.Cmp(*limit) != 0 {
					guaranteed = false
				}
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
