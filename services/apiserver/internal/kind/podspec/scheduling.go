package podspec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

func (v *validator) validateScheduling(p *field.Path) {
	s := v.spec
	v.Labels(p, "nodeSelector", s.NodeSelector)
	for i := range s.Tolerations {
		ValidateToleration(&v.Errors, &s.Tolerations[i], p.Child("tolerations").Index(i))
	}
	if s.PreemptionPolicy != nil {
		check.OneOf(&v.Errors, p, "preemptionPolicy", *s.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	if a := s.Affinity; a != nil {
		p := p.Child("affinity")
		if a.NodeAffinity != nil {
			v.validateNodeAffinity(a.NodeAffinity, p.Child("nodeAffinity"))
		}
		if a.PodAffinity != nil {
			v.validatePodAffinity(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAffinity"))
		}
		if a.PodAntiAffinity != nil {
			v.validatePodAffinity(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution,
				a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, p.Child("podAntiAffinity"))
		}
	}
	for i := range s.TopologySpreadConstraints {
		v.validateSpread(i, p.Child("topologySpreadConstraints"))
	}
}

// ValidateToleration checks a toleration.
func ValidateToleration(e *check.Errors, t *corev1.Toleration, p *field.Path) {
	if t.Key != "" {
		e.Messages(p, "key", t.Key, check.LabelKey(t.Key))
	}
	if t.Key == "" && t.Operator != corev1.TolerationOpExists {
		e.Invalid(p.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
	}
	if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
		e.Invalid(p.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
	}
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
		e.Messages(p, "operator", t.Value, check.LabelValue(t.Value))
	case corev1.TolerationOpExists:
		if t.Value != "" {
			e.Invalid(p.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
		}
	case corev1.TolerationOpLt, corev1.TolerationOpGt: // behind a feature gate that is off
		e.List = append(e.List, field.NotSupported(p.Child("operator"), t.Operator, []corev1.TolerationOperator{
			corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt,
		}))
	default:
		check.Supported(e, p, "operator", t.Operator,
			corev1.TolerationOpEqual, corev1.TolerationOpExists)
	}
	if t.Effect != "" {
		check.Supported(e, p, "effect", t.Effect,
			corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
	}
}

func (v *validator) validateNodeAffinity(a *corev1.NodeAffinity, p *field.Path) {
	if required := a.RequiredDuringSchedulingIgnoredDuringExecution; required != nil {
		ValidateNodeSelector(&v.Errors, required, p.Child("requiredDuringSchedulingIgnoredDuringExecution"))
	}
	for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
		term := &a.PreferredDuringSchedulingIgnoredDuringExecution[i]
		at := p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		v.validateWeight(term.Weight, at)
		validateNodeTerm(&v.Errors, &term.Preference, at.Child("preference"), false)
	}
}

func (v *validator) validateWeight(weight int32, p *field.Path) {
	if weight < 1 || weight > 100 {
		v.Invalid(p.Child("weight"), weight, "must be in the range 1-100")
	}
}

// ValidateNodeSelector checks the terms of a node selector, at least one of which must match.
func ValidateNodeSelector(e *check.Errors, s *corev1.NodeSelector, p *field.Path) {
	if len(s.NodeSelectorTerms) == 0 {
		e.Required(p.Child("nodeSelectorTerms"), "must have at least one node selector term")
	}
	for i := range s.NodeSelectorTerms {
		validateNodeTerm(e, &s.NodeSelectorTerms[i], p.Child("nodeSelectorTerms").Index(i), true)
	}
}

// validateNodeTerm checks a term. values is true if the values must be valid label values, as in
// required terms; a preference for an impossible value does no harm.
func validateNodeTerm(e *check.Errors, t *corev1.NodeSelectorTerm, p *field.Path, values bool) {
	for i := range t.MatchExpressions {
		validateNodeRequirement(e, &t.MatchExpressions[i], p.Child("matchExpressions").Index(i), values)
	}
	for i := range t.MatchFields {
		validateNodeField(e, &t.MatchFields[i], p.Child("matchFields").Index(i))
	}
}

func validateNodeRequirement(e *check.Errors, r *corev1.NodeSelectorRequirement, p *field.Path, values bool) {
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) == 0 {
			e.Required(p.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
		}
	case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			e.Forbidden(p.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
		}
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			e.Required(p.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
		}
	default:
		e.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator")
	}
	e.Messages(p, "key", r.Key, check.LabelKey(r.Key))
	for i := 0; values && i < len(r.Values); i++ {
		e.Messages(p.Child("values").Index(i), "", r.Values[i], check.LabelValue(r.Values[i]))
	}
}

func validateNodeField(e *check.Errors, r *corev1.NodeSelectorRequirement, p *field.Path) {
	switch r.Operator {
	case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
		if len(r.Values) != 1 {
			e.Required(p.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
		}
	default:
		e.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator")
	}
	if r.Key != metav1.ObjectNameField {
		e.Invalid(p.Child("key"), r.Key, "not a valid field selector key")
		return
	}
	for i, value := range r.Values {
		e.Messages(p.Child("values").Index(i), "", value, check.Subdomain(value))
	}
}

func (v *validator) validatePodAffinity(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, p *field.Path) {
	for i := range required {
		v.validatePodTerm(&required[i], p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))
	}
	for i := range preferred {
		at := p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		v.validateWeight(preferred[i].Weight, at)
		v.validatePodTerm(&preferred[i].PodAffinityTerm, at.Child("podAffinityTerm"))
	}
}

func (v *validator) validatePodTerm(t *corev1.PodAffinityTerm, p *field.Path) {
	v.Selector(p, "labelSelector", t.LabelSelector)
	v.Selector(p, "namespaceSelector", t.NamespaceSelector)
	for _, name := range t.Namespaces {
		if m := check.Label(name); m != nil {
			v.Messages(p, "namespace", name, m)
		}
	}
	v.validateTopologyKey(t.TopologyKey, p)
	v.validateLabelKeys(t.MatchLabelKeys, t.LabelSelector, p, "matchLabelKeys")
	v.validateLabelKeys(t.MismatchLabelKeys, t.LabelSelector, p, "mismatchLabelKeys")
	var seen check.Seen
	for _, key := range t.MismatchLabelKeys {
		seen.Add(key)
	}
	for i, key := range t.MatchLabelKeys {
		if seen.Has(key) {
			v.Invalid(p.Child("matchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

func (v *validator) validateTopologyKey(key string, p *field.Path) {
	if key == "" {
		v.Required(p.Child("topologyKey"), "can not be empty")
	}
	v.Messages(p, "topologyKey", key, check.LabelKey(key))
}

// validateLabelKeys checks keys whose values are taken from the pod's own labels and added to the
// selector.
func (v *validator) validateLabelKeys(keys []string, s *metav1.LabelSelector, p *field.Path, child string) {
	if len(keys) == 0 {
		return
	}
	if s == nil {
		v.Forbidden(p.Child(child), "must not be specified when labelSelector is not set")
		return
	}
	for i, key := range keys {
		v.Messages(p.Child(child).Index(i), "", key, check.LabelKey(key))
	}
}

func (v *validator) validateSpread(i int, p *field.Path) {
	all := v.spec.TopologySpreadConstraints
	c, at := &all[i], p.Index(i)
	if c.MaxSkew <= 0 {
		v.Invalid(at.Child("maxSkew"), c.MaxSkew, "must be greater than zero")
	}
	if c.TopologyKey == "" {
		v.Required(at.Child("topologyKey"), "can not be empty")
	}
	check.Supported(&v.Errors, at, "whenUnsatisfiable", c.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)
	for j := i + 1; j < len(all); j++ {
		if all[j].TopologyKey == c.TopologyKey && all[j].WhenUnsatisfiable == c.WhenUnsatisfiable {
			v.Duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable))
			break
		}
	}
	if c.MinDomains != nil {
		if *c.MinDomains <= 0 {
			v.Invalid(at.Child("minDomains"), *c.MinDomains, "must be greater than zero")
		}
		if c.WhenUnsatisfiable != corev1.DoNotSchedule {
			v.Invalid(at.Child("minDomains"), *c.MinDomains,
				fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable))
		}
	}
	if c.NodeAffinityPolicy != nil {
		check.Supported(&v.Errors, at, "nodeAffinityPolicy", *c.NodeAffinityPolicy, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)
	}
	if c.NodeTaintsPolicy != nil {
		check.Supported(&v.Errors, at, "nodeTaintsPolicy", *c.NodeTaintsPolicy, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)
	}
	v.validateLabelKeys(c.MatchLabelKeys, c.LabelSelector, at, "matchLabelKeys")
	v.Selector(at, "labelSelector", c.LabelSelector)
}
