package core

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/podspec"
)

// validatePodStatus checks a status that a node or controller writes.
func validatePodStatus(p, old *corev1.Pod) field.ErrorList {
	e := check.Errors{List: podspec.ValidateAnnotationUpdate(p, old)}
	path := field.NewPath("status")
	s, was := &p.Status, &old.Status
	if s.NominatedNodeName != "" {
		e.Messages(path, "nominatedNodeName", s.NominatedNodeName, check.Subdomain(s.NominatedNodeName))
	}
	if s.NominatedNodeName != "" && s.NominatedNodeName != was.NominatedNodeName && p.Spec.NodeName != "" {
		e.Forbidden(path.Child("nominatedNodeName"), "may not be set on pods that are already bound to a node")
	}
	if s.QOSClass != was.QOSClass {
		e.Invalid(path.Child("qosClass"), s.QOSClass, check.Immutable)
	}
	if s.ObservedGeneration < 0 {
		e.Invalid(path.Child("observedGeneration"), s.ObservedGeneration, "must be a non-negative integer")
	}
	for i, c := range s.Conditions {
		e.Messages(path.Child("conditions").Index(i), "Type", string(c.Type), check.LabelKey(string(c.Type)))
	}
	validatePodIPs(&e, s, was, path.Child("podIPs"))
	validateHostIPs(&e, s, was, path.Child("hostIPs"))
	validateStates(&e, s.ContainerStatuses, was.ContainerStatuses, p.Spec.Containers, p.Spec.RestartPolicy, path.Child("containerStatuses"))
	validateStates(&e, s.InitContainerStatuses, was.InitContainerStatuses, p.Spec.InitContainers, p.Spec.RestartPolicy, path.Child("initContainerStatuses"))
	// Ephemeral containers are never restarted, and have no resources.
	ephemeral := path.Child("ephemeralContainerStatuses")
	validateStates(&e, s.EphemeralContainerStatuses, was.EphemeralContainerStatuses, nil, corev1.RestartPolicyNever, ephemeral)
	for i := range s.EphemeralContainerStatuses {
		if len(s.EphemeralContainerStatuses[i].AllocatedResourcesStatus) > 0 {
			e.Forbidden(ephemeral.Index(i).Child("allocatedResourcesStatus"), "must not be specified in container status")
		}
	}
	return e.List
}

// pairPodIPs keeps podIP equal to the first of podIPs. If both are given and differ, podIP takes
// precedence, because clients that do not know podIPs send the old list unchanged.
func pairPodIPs(s *corev1.PodStatus) {
	switch {
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	}
}

func validatePodIPs(e *check.Errors, s, old *corev1.PodStatus, p *field.Path) {
	if slices.Equal(s.PodIPs, old.PodIPs) {
		return
	}
	for i, ip := range s.PodIPs {
		e.Append(validation.IsValidIPForLegacyField(p.Index(i), ip.IP, true, nil))
	}
	if len(e.List) == 0 && !atMostOneOfFamily(len(s.PodIPs), func(i int) string { return s.PodIPs[i].IP }) {
		e.Invalid(p, s.PodIPs, "may specify no more than one IP for each IP family")
	}
}

func validateHostIPs(e *check.Errors, s, old *corev1.PodStatus, p *field.Path) {
	if slices.Equal(s.HostIPs, old.HostIPs) && s.HostIP == old.HostIP || len(s.HostIPs) == 0 {
		return
	}
	if s.HostIPs[0].IP != s.HostIP {
		e.Invalid(p.Index(0).Child("ip"), s.HostIPs[0].IP, "must be equal to `hostIP`")
	}
	for i, ip := range s.HostIPs {
		e.Append(validation.IsValidIPForLegacyField(p.Index(i), ip.IP, true, nil))
	}
	if len(e.List) == 0 && !atMostOneOfFamily(len(s.HostIPs), func(i int) string { return s.HostIPs[i].IP }) {
		e.Invalid(p, s.HostIPs, "may specify no more than one IP for each IP family")
	}
}

func atMostOneOfFamily(n int, ip func(int) string) bool {
	if n < 2 {
		return true
	}
	if n > 2 {
		return false
	}
	a, _ := netip.ParseAddr(ip(0))
	b, _ := netip.ParseAddr(ip(1))
	return a.Is4() != b.Is4()
}

// validateStates checks that a container which will not be restarted does not leave the state
// terminated.
func validateStates(e *check.Errors, statuses, old []corev1.ContainerStatus, containers []corev1.Container,
	policy corev1.RestartPolicy, p *field.Path,
) {
	if policy == corev1.RestartPolicyAlways {
		return
	}
	for i := range old {
		was := &old[i]
		if was.State.Terminated == nil || policy == corev1.RestartPolicyOnFailure && was.State.Terminated.ExitCode != 0 {
			continue
		}
		if slices.ContainsFunc(containers, func(c corev1.Container) bool { return c.Name == was.Name && c.RestartPolicy != nil }) {
			continue // it has restart rules of its own
		}
		for j := range statuses {
			if statuses[j].Name == was.Name && statuses[j].State.Terminated == nil {
				e.Forbidden(p.Index(j).Child("state"), "may not be transitioned to non-terminated state")
			}
		}
	}
}
