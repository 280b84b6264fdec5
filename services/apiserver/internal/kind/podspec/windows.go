package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// windows refuses what only Linux has in a pod for Windows. Nodes run Linux, and refuse the pod
// when it is bound to them.
func (v *validator) windows(p *field.Path) {
	s := v.spec
	if s.OS == nil || s.OS.Name != corev1.Windows {
		return
	}
	forbid := func(set bool, at *field.Path) {
		if set {
			v.Forbidden(at, "cannot be set for a windows pod")
		}
	}
	if c, at := s.SecurityContext, p.Child("securityContext"); c != nil {
		forbid(c.AppArmorProfile != nil, at.Child("appArmorProfile"))
		forbid(c.SELinuxOptions != nil, at.Child("seLinuxOptions"))
		forbid(c.SeccompProfile != nil, at.Child("seccompProfile"))
		forbid(c.FSGroup != nil, at.Child("fsGroup"))
		forbid(c.FSGroupChangePolicy != nil, at.Child("fsGroupChangePolicy"))
		forbid(len(c.Sysctls) > 0, at.Child("sysctls"))
		forbid(c.RunAsUser != nil, at.Child("runAsUser"))
		forbid(c.RunAsGroup != nil, at.Child("runAsGroup"))
		forbid(c.SupplementalGroups != nil, at.Child("supplementalGroups"))
		forbid(c.SupplementalGroupsPolicy != nil, at.Child("supplementalGroupsPolicy"))
		forbid(c.SELinuxChangePolicy != nil, at.Child("seLinuxChangePolicy"))
	}
	forbid(s.HostUsers != nil, p.Child("hostUsers"))
	forbid(s.HostPID, p.Child("hostPID"))
	forbid(s.HostIPC, p.Child("hostIPC"))
	forbid(s.ShareProcessNamespace != nil, p.Child("shareProcessNamespace"))
	container := func(c *corev1.SecurityContext, at *field.Path) {
		if c == nil {
			return
		}
		forbid(c.AppArmorProfile != nil, at.Child("appArmorProfile"))
		forbid(c.SELinuxOptions != nil, at.Child("seLinuxOptions"))
		forbid(c.SeccompProfile != nil, at.Child("seccompProfile"))
		forbid(c.Capabilities != nil, at.Child("capabilities"))
		forbid(c.ReadOnlyRootFilesystem != nil, at.Child("readOnlyRootFilesystem"))
		forbid(c.Privileged != nil, at.Child("privileged"))
		forbid(c.AllowPrivilegeEscalation != nil, at.Child("allowPrivilegeEscalation"))
		forbid(c.ProcMount != nil, at.Child("procMount"))
		forbid(c.RunAsUser != nil, at.Child("runAsUser"))
		forbid(c.RunAsGroup != nil, at.Child("runAsGroup"))
	}
	for i := range s.InitContainers {
		container(s.InitContainers[i].SecurityContext, p.Child("initContainers").Index(i).Child("securityContext"))
	}
	for i := range s.Containers {
		container(s.Containers[i].SecurityContext, p.Child("containers").Index(i).Child("securityContext"))
	}
	for i := range s.EphemeralContainers {
		container(s.EphemeralContainers[i].SecurityContext, p.Child("ephemeralContainers").Index(i).Child("securityContext"))
	}
}
