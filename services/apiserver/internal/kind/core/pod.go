package core

import (
	"cmp"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Pod returns the row of pods.
func Pod() *resource.Kind {
	k := row.Namespaced[corev1.Pod, corev1.PodList](corev1.SchemeGroupVersion, "pods", "pods")
	k.ReturnsDeleted = true
	k.ShortNames = []string{"po"}
	k.Categories = []string{"all"}
	k.Fields = map[string]func(resource.Object) string{
		"spec.nodeName":           podField(func(p *corev1.Pod) string { return p.Spec.NodeName }),
		"spec.restartPolicy":      podField(func(p *corev1.Pod) string { return string(p.Spec.RestartPolicy) }),
		"spec.schedulerName":      podField(func(p *corev1.Pod) string { return p.Spec.SchedulerName }),
		"spec.serviceAccountName": podField(func(p *corev1.Pod) string { return p.Spec.ServiceAccountName }),
		"spec.hostNetwork":        podField(func(p *corev1.Pod) string { return strconv.FormatBool(p.Spec.HostNetwork) }),
		"status.phase":            podField(func(p *corev1.Pod) string { return string(p.Status.Phase) }),
		"status.podIP":            podField(podIP),
		"status.podIPs":           podField(podIPs),
		"status.nominatedNodeName": podField(func(p *corev1.Pod) string {
			return p.Status.NominatedNodeName
		}),
	}
	k.Rules = resource.Typed[*corev1.Pod]{
		Default:        defaultPod,
		Validate:       podspec.ValidateCreate,
		Notices:        podspec.AppArmorNotices,
		Warnings:       func(p, _ *corev1.Pod) []string { return podspec.Warnings(&p.Spec, p.Annotations, nil) },
		ValidateUpdate: podspec.ValidateUpdate,
		PrepareCreate:  preparePod,
		PrepareUpdate: func(p, old *corev1.Pod) {
			p.Status = old.Status
			podspec.KeepPodResources(&p.Spec, &old.Spec)
			podspec.Drop(&p.Spec)
		},
	}.Rules()
	k.Graceful = gracefulPod
	k.Columns, k.Cells = podColumns(), podCells
	group := func(kind string) schema.GroupVersionKind { return corev1.SchemeGroupVersion.WithKind(kind) }
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*corev1.Pod]{
			Default: func(p *corev1.Pod) { pairPodIPs(&p.Status) },
			PrepareUpdate: func(p, old *corev1.Pod) {
				p.Spec = old.Spec
				p.OwnerReferences = old.OwnerReferences
				p.Status.QOSClass = cmp.Or(p.Status.QOSClass, old.Status.QOSClass)
			},
			ValidateUpdate: validatePodStatus,
		}.Rules(), "spec", "metadata.deletionTimestamp", "metadata.ownerReferences"),
		"ephemeralcontainers": row.Part(resource.Typed[*corev1.Pod]{
			Default: defaultPod,
			PrepareUpdate: func(p, old *corev1.Pod) {
				podspec.PrepareEphemeral(&p.Spec, &old.Spec)
				keepRest(p, old)
			},
			ValidateUpdate: podspec.ValidateEphemeralUpdate,
		}.Rules(), "spec.ephemeralContainers"),
		"resize": row.Part(resource.Typed[*corev1.Pod]{
			Default: defaultPod,
			PrepareUpdate: func(p, old *corev1.Pod) {
				podspec.PrepareResize(&p.Spec, &old.Spec)
				keepRest(p, old)
			},
			ValidateUpdate: podspec.ValidateResize,
		}.Rules(), "spec.containers.*.resources", "spec.initContainers.*.resources"),
		"binding":     podBinding(),
		"eviction":    podEviction(),
		"log":         row.Connect(schema.GroupVersionKind{}, resource.Log, "get"),
		"exec":        row.Connect(group("PodExecOptions"), resource.Exec, "create", "get"),
		"attach":      row.Connect(group("PodAttachOptions"), resource.Attach, "create", "get"),
		"portforward": row.Connect(group("PodPortForwardOptions"), resource.PortForward, "create", "get"),
		"network":     row.Projection(podNetwork, samePodNetwork),
		"proxy":       row.Connect(group("PodProxyOptions"), resource.Proxy, "create", "delete", "get", "patch", "update"),
	}
	return k
}

func defaultPod(p *corev1.Pod) {
	podspec.Default(&p.Spec)
	podspec.DefaultPod(&p.Spec)
	pairPodIPs(&p.Status)
}

// keepRest restores everything but the spec and the managed fields from old.
func keepRest(p, old *corev1.Pod) {
	metav1.ResetObjectMetaForStatus(p, old)
	p.Status = old.Status
}

func podField(f func(*corev1.Pod) string) func(resource.Object) string {
	return func(o resource.Object) string { return f(o.(*corev1.Pod)) }
}

func podIP(p *corev1.Pod) string {
	if len(p.Status.PodIPs) > 0 {
		return p.Status.PodIPs[0].IP
	}
	return p.Status.PodIP
}

func podIPs(p *corev1.Pod) string {
	if len(p.Status.PodIPs) == 0 {
		return p.Status.PodIP
	}
	ips := make([]string, len(p.Status.PodIPs))
	for i, ip := range p.Status.PodIPs {
		ips[i] = ip.IP
	}
	return strings.Join(ips, ",")
}

// preparePod sets the initial status of a pod.
func preparePod(p *corev1.Pod) {
	podspec.DefaultPodResources(&p.Spec)
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: podspec.QOS(&p.Spec)}
	if len(p.Spec.SchedulingGates) > 0 {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates", LastTransitionTime: metav1.Now(),
		}}
	}
	podspec.SetAppArmor(p)
	podspec.Drop(&p.Spec)
	podspec.MergeLabelKeys(&p.Spec, p.Labels)
}

// gracefulPod returns how long a deleted pod may take to end: the requested time, or that in its
// spec. It is zero if the pod was never scheduled or has ended.
func gracefulPod(o resource.Object, requested *int64) (int64, bool) {
	p := o.(*corev1.Pod)
	if p.Spec.NodeName == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return 0, false
	}
	var seconds int64
	switch {
	case requested != nil:
		seconds = *requested
	case p.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *p.Spec.TerminationGracePeriodSeconds
	}
	if seconds < 0 {
		seconds = 1
	}
	return seconds, seconds > 0
}
