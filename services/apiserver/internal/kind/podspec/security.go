package podspec

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

func (v *validator) validateUser(id *int64, p *field.Path, child string) {
	if id != nil {
		for _, m := range validationutil.IsValidUserID(*id) {
			v.Invalid(p.Child(child), *id, m)
		}
	}
}

func (v *validator) validateGroup(id *int64, p *field.Path, child string) {
	if id != nil {
		for _, m := range validationutil.IsValidGroupID(*id) {
			v.Invalid(p.Child(child), *id, m)
		}
	}
}

func (v *validator) validatePodSecurity(p *field.Path) {
	s := v.spec
	if s.ShareProcessNamespace != nil && *s.ShareProcessNamespace && s.HostPID {
		v.Invalid(p.Child("shareProcessNamespace"), *s.ShareProcessNamespace, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	c := s.SecurityContext
	if c == nil {
		return
	}
	p = p.Child("securityContext")
	v.validateUser(c.RunAsUser, p, "runAsUser")
	v.validateGroup(c.RunAsGroup, p, "runAsGroup")
	v.validateGroup(c.FSGroup, p, "fsGroup")
	for i, g := range c.SupplementalGroups {
		if m := validationutil.IsValidGroupID(g); m != nil {
			v.Invalid(p.Child("supplementalGroups").Index(i), g, m[0])
		}
	}
	if len(c.Sysctls) > 0 {
		v.validateSysctls(c.Sysctls, p.Child("sysctls"))
	}
	if c.FSGroupChangePolicy != nil {
		check.Supported(&v.Errors, p, "fsGroupChangePolicy", *c.FSGroupChangePolicy,
			corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
	}
	if c.SupplementalGroupsPolicy != nil {
		check.Supported(&v.Errors, p, "supplementalGroupsPolicy", *c.SupplementalGroupsPolicy,
			corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if c.SELinuxChangePolicy != nil {
		check.Supported(&v.Errors, p, "seLinuxChangePolicy", *c.SELinuxChangePolicy,
			corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)
	}
	v.validateProfiles(c.SeccompProfile, c.AppArmorProfile, p)
}

func (v *validator) validateContainerSecurity(c *corev1.SecurityContext, p *field.Path) {
	if c == nil {
		return
	}
	p = p.Child("securityContext")
	v.validateUser(c.RunAsUser, p, "runAsUser")
	v.validateGroup(c.RunAsGroup, p, "runAsGroup")
	if c.ProcMount != nil {
		check.Supported(&v.Errors, p, "procMount", *c.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
	}
	if c.AllowPrivilegeEscalation != nil && !*c.AllowPrivilegeEscalation {
		if c.Privileged != nil && *c.Privileged {
			v.Invalid(p, c, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
		}
		if c.Capabilities != nil {
			for _, added := range c.Capabilities.Add {
				if added == "CAP_SYS_ADMIN" {
					v.Invalid(p, c, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
				}
			}
		}
	}
	v.validateProfiles(c.SeccompProfile, c.AppArmorProfile, p)
}

func (v *validator) validateProfiles(seccomp *corev1.SeccompProfile, appArmor *corev1.AppArmorProfile, p *field.Path) {
	if seccomp != nil {
		v.validateSeccomp(seccomp, p.Child("seccompProfile"))
	}
	if appArmor != nil {
		v.validateAppArmor(appArmor, p.Child("appArmorProfile"))
	}
}

func (v *validator) validateSeccomp(s *corev1.SeccompProfile, p *field.Path) {
	switch s.Type {
	case corev1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile == nil {
			v.Required(p.Child("localhostProfile"), "must be set when seccomp type is Localhost")
		} else {
			v.descending(*s.LocalhostProfile, p, "localhostProfile")
		}
		return
	case corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined:
	case "":
		v.Required(p.Child("type"), "type is required when seccompProfile is set")
	default:
		check.Supported(&v.Errors, p, "type", s.Type,
			corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	}
	if s.LocalhostProfile != nil {
		v.Invalid(p.Child("localhostProfile"), s, "can only be set when seccomp type is Localhost")
	}
}

const appArmorNameAtMost = 4095 // PATH_MAX without the terminating NUL

func (v *validator) validateAppArmor(s *corev1.AppArmorProfile, p *field.Path) {
	switch s.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		switch {
		case s.LocalhostProfile == nil:
			v.Required(p.Child("localhostProfile"), "must be set when AppArmor type is Localhost")
		case *s.LocalhostProfile == "" || strings.TrimSpace(*s.LocalhostProfile) == "":
			v.Required(p.Child("localhostProfile"), "must be set when AppArmor type is Localhost")
		case strings.TrimSpace(*s.LocalhostProfile) != *s.LocalhostProfile:
			v.Invalid(p.Child("localhostProfile"), *s.LocalhostProfile, "must not be padded with whitespace")
		case len(*s.LocalhostProfile) > appArmorNameAtMost:
			v.List = append(v.List, field.TooLong(p.Child("localhostProfile"), *s.LocalhostProfile, appArmorNameAtMost))
		}
		return
	case corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined:
	case "":
		v.Required(p.Child("type"), "type is required when appArmorProfile is set")
		return
	default:
		check.Supported(&v.Errors, p, "type", s.Type,
			corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	}
	if s.LocalhostProfile != nil {
		v.Invalid(p.Child("localhostProfile"), *s.LocalhostProfile, "can only be set when AppArmor type is Localhost")
	}
}

const sysctlNameAtMost = 253

// sysctlName matches the name of a sysctl: parts of lower-case letters, digits, dashes and
// underscores, separated by dots or slashes.
var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

func (v *validator) validateSysctls(sysctls []corev1.Sysctl, p *field.Path) {
	var seen check.Seen
	for i, s := range sysctls {
		at := p.Index(i)
		switch {
		case s.Name == "":
			v.Required(at.Child("name"), "")
		case len(s.Name) > sysctlNameAtMost || !sysctlName.MatchString(s.Name):
			v.Invalid(at.Child("name"), s.Name,
				"must have at most 253 characters and match regex "+sysctlName.String())
		default:
			dotted := strings.ReplaceAll(s.Name, "/", ".")
			if seen.Add(s.Name) {
				v.Duplicate(at.Child("name"), s.Name)
			}
			if v.spec.HostNetwork && strings.HasPrefix(dotted, "net.") {
				v.Invalid(at.Child("name"), s.Name, "may not be specified when 'hostNetwork' is true")
			}
			if v.spec.HostIPC && (strings.HasPrefix(dotted, "kernel.shm") || strings.HasPrefix(dotted, "kernel.msg") ||
				dotted == "kernel.sem" || strings.HasPrefix(dotted, "fs.mqueue.")) {
				v.Invalid(at.Child("name"), s.Name, "may not be specified when 'hostIPC' is true")
			}
		}
	}
}
