package podspec

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Drop clears the fields of features that are off in Kubernetes by default: values that a client
// sets are silently dropped, as in Kubernetes.
func Drop(s *corev1.PodSpec) {
	s.SchedulingGroup = nil
	s.EvictionResponders = nil
	for i := range s.Volumes {
		dropVolume(&s.Volumes[i].VolumeSource)
	}
	for i := range s.InitContainers {
		dropContainer(&s.InitContainers[i])
	}
	for i := range s.Containers {
		dropContainer(&s.Containers[i])
	}
	for i := range s.EphemeralContainers {
		dropContainer(plain(&s.EphemeralContainers[i]))
	}
}

func dropVolume(s *corev1.VolumeSource) {
	if s.EmptyDir != nil {
		s.EmptyDir.Mode = nil
	}
	switch {
	case s.Secret != nil:
		s.Secret.DefaultUser = nil
		dropUsers(s.Secret.Items)
	case s.ConfigMap != nil:
		s.ConfigMap.DefaultUser = nil
		dropUsers(s.ConfigMap.Items)
	case s.DownwardAPI != nil:
		s.DownwardAPI.DefaultUser = nil
		dropDownwardUsers(s.DownwardAPI.Items)
	case s.Projected != nil:
		s.Projected.DefaultUser = nil
		for i := range s.Projected.Sources {
			dropProjectionUsers(&s.Projected.Sources[i])
		}
	}
}

func dropProjectionUsers(s *corev1.VolumeProjection) {
	if s.Secret != nil {
		dropUsers(s.Secret.Items)
	}
	if s.ConfigMap != nil {
		dropUsers(s.ConfigMap.Items)
	}
	if s.DownwardAPI != nil {
		dropDownwardUsers(s.DownwardAPI.Items)
	}
	if s.ServiceAccountToken != nil {
		s.ServiceAccountToken.User = nil
	}
}

func dropUsers(items []corev1.KeyToPath) {
	for i := range items {
		items[i].User = nil
	}
}

func dropDownwardUsers(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		items[i].User = nil
	}
}

func dropContainer(c *corev1.Container) {
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if probe == nil {
			continue
		}
		dropHTTPGet(probe.HTTPGet)
		if probe.GRPC != nil {
			probe.GRPC.Mode = nil
		}
	}
	if l := c.Lifecycle; l != nil {
		l.StopSignal = nil
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				dropHTTPGet(h.HTTPGet)
			}
		}
	}
	for i := range c.VolumeMounts {
		c.VolumeMounts[i].BindMountOptions = nil
	}
}

func dropHTTPGet(a *corev1.HTTPGetAction) {
	if a != nil {
		a.Protocol = nil
	}
}

// MergeLabelKeys adds the pod's own labels to the selectors that name their keys in
// matchLabelKeys and mismatchLabelKeys, so that schedulers see plain selectors.
func MergeLabelKeys(s *corev1.PodSpec, labels map[string]string) {
	if a := s.Affinity; a != nil {
		if a.PodAffinity != nil {
			mergeTerms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, labels)
		}
		if a.PodAntiAffinity != nil {
			mergeTerms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, labels)
		}
	}
	for i := range s.TopologySpreadConstraints {
		c := &s.TopologySpreadConstraints[i]
		mergeKeys(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
	}
}

func mergeTerms(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, labels map[string]string) {
	one := func(t *corev1.PodAffinityTerm) {
		mergeKeys(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
		mergeKeys(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn, labels)
	}
	for i := range required {
		one(&required[i])
	}
	for i := range preferred {
		one(&preferred[i].PodAffinityTerm)
	}
}

func mergeKeys(s *metav1.LabelSelector, keys []string, operator metav1.LabelSelectorOperator, labels map[string]string) {
	if s == nil {
		return
	}
	for _, key := range keys {
		if value, ok := labels[key]; ok {
			s.MatchExpressions = append(s.MatchExpressions,
				metav1.LabelSelectorRequirement{Key: key, Operator: operator, Values: []string{value}})
		}
	}
}
