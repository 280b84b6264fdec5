package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// Kubernetes' limits on restart rules.
const (
	maxRestartRules = 20
	maxRestartCodes = 255
)

// validateRestart checks a container's own restart policy and restart rules.
func (v *validator) validateRestart(c *corev1.Container, p *field.Path) {
	if c.RestartPolicy != nil {
		check.Supported(&v.Errors, p, "restartPolicy", *c.RestartPolicy,
			corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	}
	if len(c.RestartPolicyRules) == 0 {
		return
	}
	if c.RestartPolicy == nil {
		v.Required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
	}
	p = p.Child("restartPolicyRules")
	if len(c.RestartPolicyRules) > maxRestartRules {
		v.List = append(v.List, field.TooLong(p, c.RestartPolicyRules, maxRestartRules))
	}
	for i := range c.RestartPolicyRules {
		v.validateRestartRule(&c.RestartPolicyRules[i], p.Index(i))
	}
}

func (v *validator) validateRestartRule(r *corev1.ContainerRestartRule, p *field.Path) {
	check.Supported(&v.Errors, p, "action", r.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)
	if r.ExitCodes == nil {
		v.Required(p.Child("exitCodes"), "must be specified")
		return
	}
	at := p.Child("exitCodes")
	check.Supported(&v.Errors, at, "operator", r.ExitCodes.Operator,
		corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
	if n := len(r.ExitCodes.Values); n > maxRestartCodes {
		v.List = append(v.List, field.TooLong(at.Child("values"), r.ExitCodes.Values, maxRestartCodes))
	}
}
