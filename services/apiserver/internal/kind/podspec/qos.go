package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// QOS is the quality of service that a pod's requests and limits of CPU and
// memory earn it: Guaranteed if every container limits both and requests just
// that, BestEffort if none asks for anything, Burstable otherwise.
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
