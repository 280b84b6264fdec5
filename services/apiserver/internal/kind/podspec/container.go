package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

func (v *validator) validateContainers(p *field.Path) {
	s := v.spec
	var names check.Seen
	var hostPorts check.Seen
	if len(s.Containers) == 0 {
		v.Required(p.Child("containers"), "")
	}
	list := p.Child("containers")
	for i := range s.Containers {
		c, at := &s.Containers[i], list.Index(i)
		v.validateContainer(c, at, &names, &hostPorts)
		v.validateLifecycle(c.Lifecycle, at)
		v.validateProbes(c, at)
	}
	if len(s.InitContainers) == 0 {
		return
	}
	list = p.Child("initContainers")
	for i := range s.InitContainers {
		c, at := &s.InitContainers[i], list.Index(i)
		// Init containers run sequentially, so they may share host ports.
		v.validateContainer(c, at, &names, &check.Seen{})
		if sidecar(c) {
			v.validateLifecycle(c.Lifecycle, at)
			v.validateProbes(c, at)
			continue
		}
		v.validateInitOnly(c, at)
	}
}

// sidecar reports whether an init container keeps running next to the containers.
func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func (v *validator) validateInitOnly(c *corev1.Container, p *field.Path) {
	const detail = "may not be set for init containers without restartPolicy=Always"
	if c.Lifecycle != nil {
		v.Forbidden(p.Child("lifecycle"), detail)
	}
	if c.LivenessProbe != nil {
		v.Forbidden(p.Child("livenessProbe"), detail)
	}
	if c.ReadinessProbe != nil {
		v.Forbidden(p.Child("readinessProbe"), detail)
	}
	if c.StartupProbe != nil {
		v.Forbidden(p.Child("startupProbe"), detail)
	}
	for i, r := range c.ResizePolicy {
		if r.RestartPolicy == corev1.RestartContainer {
			v.Invalid(p.Child("resizePolicy").Index(i).Child("restartPolicy"), r.RestartPolicy,
				"must not be set to 'RestartContainer' for non-sidecar initContainers")
		}
	}
}

func (v *validator) validateContainer(c *corev1.Container, p *field.Path, names, hostPorts *check.Seen) {
	v.validateCommon(c, p, names, hostPorts)
	v.validateRestart(c, p)
}

// validateCommon checks what containers of all kinds have.
func (v *validator) validateCommon(c *corev1.Container, p *field.Path, names, hostPorts *check.Seen) {
	if c.Name == "" {
		v.Required(p.Child("name"), "")
	} else {
		v.Messages(p, "name", c.Name, check.Label(c.Name))
	}
	if names.Add(c.Name) {
		v.Duplicate(p.Child("name"), c.Name)
	}
	switch {
	case c.Image == "":
		v.Required(p.Child("image"), "")
	case len(strings.TrimSpace(c.Image)) != len(c.Image):
		v.Invalid(p.Child("image"), c.Image, "must not have leading or trailing whitespace")
	}
	check.OneOf(&v.Errors, p, "terminationMessagePolicy", c.TerminationMessagePolicy,
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	check.OneOf(&v.Errors, p, "imagePullPolicy", c.ImagePullPolicy,
		corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	v.validatePorts(c.Ports, p, hostPorts)
	v.validateEnv(c.Env, p)
	v.validateEnvFrom(c.EnvFrom, p)
	v.validateMounts(c, p)
	ValidateResources(&v.Errors, &c.Resources, p.Child("resources"))
	v.validateResizePolicy(c, p)
	v.validateContainerSecurity(c.SecurityContext, p)
}

func (v *validator) validatePorts(ports []corev1.ContainerPort, p *field.Path, hostPorts *check.Seen) {
	if len(ports) == 0 {
		return
	}
	p = p.Child("ports")
	var names check.Seen
	for i := range ports {
		port, at := &ports[i], p.Index(i)
		if port.Name != "" {
			if m := validationutil.IsValidPortName(port.Name); len(m) > 0 {
				v.Messages(at, "name", port.Name, m)
			} else if names.Add(port.Name) {
				v.Duplicate(at.Child("name"), port.Name)
			}
		}
		if port.ContainerPort == 0 {
			v.Required(at.Child("containerPort"), "")
		} else {
			v.PortNumber(at, "containerPort", int(port.ContainerPort))
		}
		if port.HostPort != 0 {
			v.PortNumber(at, "hostPort", int(port.HostPort))
			if v.spec.HostNetwork && port.HostPort != port.ContainerPort {
				v.Invalid(at.Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true")
			}
			key := hostPortKey(port)
			if hostPorts.Add(key) {
				v.Duplicate(at.Child("hostPort"), key)
			}
		}
		check.OneOf(&v.Errors, at, "protocol", port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
	}
}
