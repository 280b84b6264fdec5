package podspec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// plain returns an ephemeral container as an ordinary one, which shares its memory. It lacks the
// name of the target container only.
func plain(c *corev1.EphemeralContainer) *corev1.Container {
	return (*corev1.Container)(&c.EphemeralContainerCommon)
}

// PrepareEphemeral restores everything but the ephemeral containers from old.
func PrepareEphemeral(s, old *corev1.PodSpec) {
	list := s.EphemeralContainers
	*s = *old
	s.EphemeralContainers = list
	for i := range list {
		dropContainer(plain(&list[i]))
	}
}

// ValidateEphemeralUpdate checks a change of a pod's ephemeral containers, to which containers can
// only be added. The rest of the pod is that of old.
func ValidateEphemeralUpdate(p, old *corev1.Pod) field.ErrorList {
	if mirror(old) {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	var e check.Errors
	e.Append(validatePod(p))
	path := field.NewPath("spec", "ephemeralContainers")
	for i := range old.Spec.EphemeralContainers {
		was := &old.Spec.EphemeralContainers[i]
		switch now := ephemeral(&p.Spec, was.Name); {
		case now == nil:
			e.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name))
		case !equality.Semantic.DeepEqual(was, now):
			e.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%s", was.Name, check.Differences(was, now)))
		}
	}
	return e.List
}

// ephemeral returns the last ephemeral container with a name, or nil.
func ephemeral(s *corev1.PodSpec, name string) *corev1.EphemeralContainer {
	for i := len(s.EphemeralContainers) - 1; i >= 0; i-- {
		if s.EphemeralContainers[i].Name == name {
			return &s.EphemeralContainers[i]
		}
	}
	return nil
}

// mirror reports whether a pod is the mirror of a static pod.
func mirror(p *corev1.Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// validateEphemeral checks the ephemeral containers. They are for a look at a running pod: what
// makes a container part of the workload is forbidden.
func (v *validator) validateEphemeral(p *field.Path) {
	s := v.spec
	if len(s.EphemeralContainers) == 0 {
		return
	}
	p = p.Child("ephemeralContainers")
	var others, names check.Seen
	for _, list := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range list {
			others.Add(list[i].Name)
			names.Add(list[i].Name)
		}
	}
	for i := range s.EphemeralContainers {
		c, at := &s.EphemeralContainers[i], p.Index(i)
		v.validateCommon(plain(c), at, &names, &check.Seen{})
		if c.TargetContainerName != "" && !others.Has(c.TargetContainerName) {
			v.List = append(v.List, field.NotFound(at.Child("targetContainerName"), c.TargetContainerName))
		}
		for _, f := range []struct {
			name string
			set  bool
		}{
			{"ports", c.Ports != nil},
			{"resources", c.Resources.Limits != nil || c.Resources.Requests != nil || c.Resources.Claims != nil},
			{"resizePolicy", c.ResizePolicy != nil},
			{"restartPolicy", c.RestartPolicy != nil},
			{"restartPolicyRules", c.RestartPolicyRules != nil},
			{"livenessProbe", c.LivenessProbe != nil},
			{"readinessProbe", c.ReadinessProbe != nil},
			{"startupProbe", c.StartupProbe != nil},
			{"lifecycle", c.Lifecycle != nil},
		} {
			if f.set {
				v.Forbidden(at.Child(f.name), notEphemeral)
			}
		}
		for j := range c.VolumeMounts {
			if c.VolumeMounts[j].SubPath != "" {
				v.Forbidden(at.Child("volumeMounts").Index(j).Child("subPath"), notEphemeral)
			}
			if c.VolumeMounts[j].SubPathExpr != "" {
				v.Forbidden(at.Child("volumeMounts").Index(j).Child("subPathExpr"), notEphemeral)
			}
		}
	}
}

const notEphemeral = "cannot be set for an Ephemeral Container"
