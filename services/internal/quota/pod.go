package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// podName reports whether pods use the quota resource name, other than as objects.
func podName(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	if strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
		return true
	}
	of, ok := strings.CutPrefix(string(name), corev1.DefaultResourceRequestsPrefix)
	return ok && (strings.HasPrefix(of, corev1.ResourceHugePagesPrefix) || extended(corev1.ResourceName(of)))
}

// extended reports whether name is an extended resource, that is, one outside of kubernetes.io.
func extended(name corev1.ResourceName) bool {
	return strings.Contains(string(name), "/") && !strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix) &&
		!strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix)
}

// Alive reports whether a pod uses compute resources: it has not ended, and if it is being
// deleted, its grace period has not passed.
func Alive(pod *corev1.Pod, now time.Time) bool {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return false
	}
	if pod.DeletionTimestamp == nil || pod.DeletionGracePeriodSeconds == nil {
		return true
	}
	grace := time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	return !now.After(pod.DeletionTimestamp.Add(grace))
}

// MayGrow reports whether a write through a subresource ("" for the object itself) can increase what
// the object uses. old is nil for a create.
func MayGrow(subresource string, obj, old any) bool {
	if old == nil {
		return subresource == ""
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		was, ok := old.(*corev1.Pod)
		return subresource == "resize" || subresource == "" && ok && Terminating(o) != Terminating(was)
	case *corev1.Service, *corev1.PersistentVolumeClaim:
		return subresource == ""
	}
	return false
}

func podUsage(pod *corev1.Pod, used corev1.ResourceList, now time.Time) {
	if !Alive(pod, now) {
		return
	}
	opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	used[corev1.ResourcePods] = one()
	compute(used, resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts))
}

// compute adds requests and limits to used, under the names that quotas use for them.
func compute(used, requests, limits corev1.ResourceList) {
	for name, q := range requests {
		switch {
		case name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage,
			strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			used[name] = q
			used[corev1.DefaultResourceRequestsPrefix+name] = q
		case extended(name):
			used[corev1.DefaultResourceRequestsPrefix+name] = q
		}
	}
	for name, q := range limits {
		switch name {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
			used["limits."+name] = q
		}
	}
}

// unspecified returns an error that names the containers without a request or limit for CPU or
// memory that a quota limits; limited are the resource names of the quota.
func unspecified(pod *corev1.Pod, limited []string) error {
	if resourcehelper.IsPodLevelResourcesSet(pod) {
		return nil
	}
	var missing []string
	for _, name := range limited {
		switch corev1.ResourceName(name) {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
			corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory:
		default:
			continue
		}
		var without []string
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				has := corev1.ResourceList{}
				compute(has, list[i].Resources.Requests, list[i].Resources.Limits)
				if _, ok := has[corev1.ResourceName(name)]; !ok {
					without = append(without, list[i].Name)
				}
			}
		}
		if len(without) > 0 {
			slices.Sort(without)
			missing = append(missing, name+" for: "+strings.Join(slices.Compact(without), ","))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("must specify %s", strings.Join(missing, "; "))
}
