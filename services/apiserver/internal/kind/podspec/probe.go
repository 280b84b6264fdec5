package podspec

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

func hostPortKey(port *corev1.ContainerPort) string {
	return string(port.Protocol) + "/" + port.HostIP + "/" + strconv.Itoa(int(port.HostPort))
}

func (v *validator) validateProbes(c *corev1.Container, p *field.Path) {
	if c.LivenessProbe != nil {
		v.validateProbe(c.LivenessProbe, p.Child("livenessProbe"))
		v.onlyOneSuccess(c.LivenessProbe, p.Child("livenessProbe"))
	}
	if c.ReadinessProbe != nil {
		v.validateProbe(c.ReadinessProbe, p.Child("readinessProbe"))
		if g := c.ReadinessProbe.TerminationGracePeriodSeconds; g != nil {
			v.Invalid(p.Child("readinessProbe", "terminationGracePeriodSeconds"), *g, "must not be set for readinessProbes")
		}
	}
	if c.StartupProbe != nil {
		v.validateProbe(c.StartupProbe, p.Child("startupProbe"))
		v.onlyOneSuccess(c.StartupProbe, p.Child("startupProbe"))
	}
}

func (v *validator) onlyOneSuccess(probe *corev1.Probe, p *field.Path) {
	if probe.SuccessThreshold != 1 {
		v.Invalid(p.Child("successThreshold"), probe.SuccessThreshold, "must be 1")
	}
}

func (v *validator) validateProbe(probe *corev1.Probe, p *field.Path) {
	v.validateHandlers(p, probe.Exec, probe.HTTPGet, probe.TCPSocket, probe.GRPC, nil)
	v.AtLeastZero(p, "initialDelaySeconds", int64(probe.InitialDelaySeconds))
	v.AtLeastZero(p, "timeoutSeconds", int64(probe.TimeoutSeconds))
	v.AtLeastZero(p, "periodSeconds", int64(probe.PeriodSeconds))
	v.AtLeastZero(p, "successThreshold", int64(probe.SuccessThreshold))
	v.AtLeastZero(p, "failureThreshold", int64(probe.FailureThreshold))
	if g := probe.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		v.Invalid(p.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0")
	}
}

func (v *validator) validateLifecycle(l *corev1.Lifecycle, p *field.Path) {
	if l == nil {
		return
	}
	p = p.Child("lifecycle")
	if h := l.PostStart; h != nil {
		v.validateHandlers(p.Child("postStart"), h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep)
	}
	if h := l.PreStop; h != nil {
		v.validateHandlers(p.Child("preStop"), h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep)
	}
}

// validateHandlers checks that exactly one handler is set, and validates it.
func (v *validator) validateHandlers(p *field.Path, exec *corev1.ExecAction, httpGet *corev1.HTTPGetAction,
	tcp *corev1.TCPSocketAction, grpc *corev1.GRPCAction, sleep *corev1.SleepAction,
) {
	count := 0
	one := func(set bool, name string) bool {
		if !set {
			return false
		}
		if count++; count > 1 {
			v.Forbidden(p.Child(name), "may not specify more than 1 handler type")
			return false
		}
		return true
	}
	if one(exec != nil, "exec") && len(exec.Command) == 0 {
		v.Required(p.Child("exec", "command"), "")
	}
	if one(httpGet != nil, "httpGet") {
		v.validateHTTPGet(httpGet, p.Child("httpGet"))
	}
	if one(tcp != nil, "tcpSocket") {
		v.validatePort(tcp.Port, p.Child("tcpSocket", "port"))
	}
	if one(grpc != nil, "grpc") {
		v.PortNumber(p.Child("grpc"), "port", int(grpc.Port))
	}
	if one(sleep != nil, "sleep") {
		v.validateSleep(sleep, p.Child("sleep"))
	}
	if count == 0 {
		v.Required(p, "must specify a handler type")
	}
}

func (v *validator) validateHTTPGet(a *corev1.HTTPGetAction, p *field.Path) {
	if a.Path == "" {
		v.Required(p.Child("path"), "")
	}
	v.validatePort(a.Port, p.Child("port"))
	check.Supported(&v.Errors, p, "scheme", a.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	for _, h := range a.HTTPHeaders {
		v.Messages(p.Child("httpHeaders"), "", h.Name, validationutil.IsHTTPHeaderName(h.Name))
	}
}

// validatePort checks the number or the name of a container's port.
func (v *validator) validatePort(port intstr.IntOrString, p *field.Path) {
	if port.Type == intstr.Int {
		if m := validationutil.IsValidPortNum(port.IntValue()); len(m) > 0 {
			v.Invalid(p, port.IntValue(), m[0])
		}
		return
	}
	v.Messages(p, "", port.StrVal, validationutil.IsValidPortName(port.StrVal))
}

func (v *validator) validateSleep(a *corev1.SleepAction, p *field.Path) {
	grace := int64(0)
	if g := v.spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	if a.Seconds < 0 || a.Seconds > grace {
		v.Invalid(p, a.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", grace))
	}
}
