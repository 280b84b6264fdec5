package autoscaling

import (
	"errors"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/podspec"
)

// Kubernetes' limits on behavior, in seconds.
const (
	maxPeriod = 1800
	maxWindow = 3600
)

// validate checks an autoscaler that has its defaults; old is nil for a new one.
func validate(h, old *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	var e check.Errors
	s, p := &h.Spec, field.NewPath("spec")
	if s.MinReplicas != nil {
		e.AtLeastZero(p, "minReplicas", int64(*s.MinReplicas))
	}
	switch {
	case s.MaxReplicas == 0:
		e.Required(p.Child("maxReplicas"), "")
	case s.MaxReplicas < 0:
		e.Invalid(p.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to 1")
	}
	if s.MinReplicas != nil && s.MaxReplicas < *s.MinReplicas {
		e.Invalid(p.Child("maxReplicas"), s.MaxReplicas, "must be greater than or equal to `minReplicas`")
	}
	target := reference{group: s.ScaleTargetRef.Kind != "ReplicationController"}
	if old != nil {
		was := &old.Spec.ScaleTargetRef
		target.unchecked = was.APIVersion == s.ScaleTargetRef.APIVersion && was.Kind == s.ScaleTargetRef.Kind
	}
	target.validate(&e, &s.ScaleTargetRef, p.Child("scaleTargetRef"))
	validateMetrics(&e, h, old, p.Child("metrics"))
	if b := s.Behavior; b != nil {
		validateRules(&e, b.ScaleUp, p.Child("behavior", "scaleUp"))
		validateRules(&e, b.ScaleDown, p.Child("behavior", "scaleDown"))
	}
	return e.List
}

// reference is how an object that is named by kind is checked.
type reference struct {
	// group is set where the core group, which has no name, cannot be meant.
	group bool
	// unchecked is set where the version was wrong before, or did not change.
	unchecked bool
}

func (r reference) validate(e *check.Errors, ref *autoscalingv2.CrossVersionObjectReference, p *field.Path) {
	segment(e, p, "kind", ref.Kind, "")
	segment(e, p, "name", ref.Name, "")
	if r.unchecked {
		return
	}
	if err := r.version(ref.APIVersion); err != nil {
		e.Invalid(p.Child("apiVersion"), ref.APIVersion, err.Error())
	}
}

func (r reference) version(v string) error {
	gv, err := schema.ParseGroupVersion(v)
	if err == nil && r.group && gv.Group == "" {
		err = errors.New("apiVersion must specify API group")
	}
	return err
}

// segment checks a name that becomes part of a path.
func segment(e *check.Errors, p *field.Path, child, name, required string) {
	if name == "" {
		e.Required(p.Child(child), required)
		return
	}
	e.Messages(p, child, name, content.IsPathSegmentName(name))
}

func validateMetrics(e *check.Errors, h, old *autoscalingv2.HorizontalPodAutoscaler, p *field.Path) {
	var described reference
	if old != nil {
		for i := range old.Spec.Metrics {
			o := old.Spec.Metrics[i].Object
			if old.Spec.Metrics[i].Type == autoscalingv2.ObjectMetricSourceType && o != nil && described.version(o.DescribedObject.APIVersion) != nil {
				described.unchecked = true
			}
		}
	}
	fromZero := false
	for i := range h.Spec.Metrics {
		m := &h.Spec.Metrics[i]
		validateMetric(e, m, described, p.Index(i))
		fromZero = fromZero || m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	}
	if n := h.Spec.MinReplicas; n != nil && *n == 0 && !fromZero {
		e.Forbidden(p, "must specify at least one Object or External metric to support scaling to zero replicas")
	}
}

var metricTypes = []autoscalingv2.MetricSourceType{
	autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType, autoscalingv2.ObjectMetricSourceType,
	autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType,
}

func validateMetric(e *check.Errors, m *autoscalingv2.MetricSpec, described reference, p *field.Path) {
	if m.Type == "" {
		e.Required(p.Child("type"), "must specify a metric source type")
	}
	sources := []struct {
		kind  autoscalingv2.MetricSourceType
		name  string
		set   bool
		check func(p *field.Path)
	}{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil, func(p *field.Path) { validateObject(e, m.Object, described, p) }},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil, func(p *field.Path) { validateExternal(e, m.External, p) }},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil, func(p *field.Path) { validatePods(e, m.Pods, p) }},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil, func(p *field.Path) { validateResource(e, m.Resource, p) }},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil,
			func(p *field.Path) { validateContainerResource(e, m.ContainerResource, p) }},
	}
	known, set := false, 0
	for _, s := range sources {
		known = known || s.kind == m.Type
		if s.kind == m.Type && !s.set {
			e.Required(p.Child(s.name), "must populate information for the given metric source")
		}
		if s.set {
			if set++; set == 1 { // the first that is set is checked
				s.check(p.Child(s.name))
			}
		}
	}
	if !known {
		e.List = append(e.List, field.NotSupported(p.Child("type"), m.Type, metricTypes))
	}
	if set < 2 {
		return
	}
	for _, s := range sources {
		if s.set && s.kind != m.Type {
			e.Forbidden(p.Child(s.name), "must populate the given metric source only")
		}
	}
}

func validateObject(e *check.Errors, s *autoscalingv2.ObjectMetricSource, described reference, p *field.Path) {
	described.validate(e, &s.DescribedObject, p.Child("describedObject"))
	segment(e, p.Child("metric"), "name", s.Metric.Name, "must specify a metric name")
	validateTarget(e, &s.Target, p.Child("target"))
	if s.Target.Value == nil && s.Target.AverageValue == nil {
		e.Required(p.Child("target", "averageValue"), "must set either a target value or averageValue")
	}
}

func validateExternal(e *check.Errors, s *autoscalingv2.ExternalMetricSource, p *field.Path) {
	segment(e, p.Child("metric"), "name", s.Metric.Name, "must specify a metric name")
	validateTarget(e, &s.Target, p.Child("target"))
	switch {
	case s.Target.Value == nil && s.Target.AverageValue == nil:
		e.Required(p.Child("target", "averageValue"), "must set either a target value for metric or a per-pod target")
	case s.Target.Value != nil && s.Target.AverageValue != nil:
		e.Forbidden(p.Child("target", "value"), "may not set both a target value for metric and a per-pod target")
	}
}

func validatePods(e *check.Errors, s *autoscalingv2.PodsMetricSource, p *field.Path) {
	segment(e, p.Child("metric"), "name", s.Metric.Name, "must specify a metric name")
	validateTarget(e, &s.Target, p.Child("target"))
	if s.Target.AverageValue == nil {
		e.Required(p.Child("target", "averageValue"), "must specify a positive target averageValue")
	}
}

func validateResource(e *check.Errors, s *autoscalingv2.ResourceMetricSource, p *field.Path) {
	if s.Name == "" {
		e.Required(p.Child("name"), "must specify a resource name")
	}
	validateTarget(e, &s.Target, p.Child("target"))
	validateEither(e, &s.Target, p.Child("target"))
}

func validateContainerResource(e *check.Errors, s *autoscalingv2.ContainerResourceMetricSource, p *field.Path) {
	if s.Name == "" {
		e.Required(p.Child("name"), "must specify a resource name")
	} else {
		podspec.ValidateContainerResourceNameAt(e, s.Name, p.Child("name"))
	}
	if s.Container == "" {
		e.Required(p.Child("container"), "must specify a container")
	} else {
		e.Messages(p, "container", s.Container, check.Label(s.Container))
	}
	validateTarget(e, &s.Target, p.Child("target"))
	validateEither(e, &s.Target, p.Child("target"))
}

// validateEither checks that a use of a resource is given in one of two ways.
func validateEither(e *check.Errors, t *autoscalingv2.MetricTarget, p *field.Path) {
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		e.Required(p.Child("averageUtilization"), "must set either a target raw value or a target utilization")
	case t.AverageUtilization != nil && t.AverageValue != nil:
		e.Forbidden(p.Child("averageValue"), "may not set both a target raw value and a target utilization")
	}
}

func validateTarget(e *check.Errors, t *autoscalingv2.MetricTarget, p *field.Path) {
	switch t.Type {
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	default:
		if t.Type == "" {
			e.Required(p.Child("type"), "must specify a metric target type")
		}
		e.Invalid(p.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue")
	}
	positive := func(child string, q *resource.Quantity) {
		if q != nil && q.Sign() != 1 {
			e.Invalid(p.Child(child), q, "must be positive")
		}
	}
	positive("value", t.Value)
	positive("averageValue", t.AverageValue)
	if n := t.AverageUtilization; n != nil && *n < 1 {
		e.Invalid(p.Child("averageUtilization"), *n, "must be greater than 0")
	}
}

func validateRules(e *check.Errors, r *autoscalingv2.HPAScalingRules, p *field.Path) {
	if r == nil {
		return
	}
	if w := r.StabilizationWindowSeconds; w != nil {
		if *w < 0 {
			e.Invalid(p.Child("stabilizationWindowSeconds"), *w, "must be greater than or equal to zero")
		}
		if *w > maxWindow {
			e.Invalid(p.Child("stabilizationWindowSeconds"), *w, fmt.Sprintf("must be less than or equal to %v", maxWindow))
		}
	}
	if r.SelectPolicy != nil {
		check.Supported(e, p, "selectPolicy", *r.SelectPolicy,
			autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect)
	}
	if len(r.Policies) == 0 {
		e.Required(p.Child("policies"), "must specify at least one Policy")
	}
	for i, policy := range r.Policies {
		at := p.Child("policies").Index(i)
		check.Supported(e, at, "type", policy.Type, autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy)
		if policy.Value <= 0 {
			e.Invalid(at.Child("value"), policy.Value, "must be greater than zero")
		}
		if policy.PeriodSeconds <= 0 {
			e.Invalid(at.Child("periodSeconds"), policy.PeriodSeconds, "must be greater than zero")
		}
		if policy.PeriodSeconds > maxPeriod {
			e.Invalid(at.Child("periodSeconds"), policy.PeriodSeconds, fmt.Sprintf("must be less than or equal to %v", maxPeriod))
		}
	}
	if t := r.Tolerance; t != nil && t.Sign() < 0 {
		e.Invalid(p.Child("tolerance"), t.String(), check.NotNegative)
	}
}

func statusErrors(s *autoscalingv2.HorizontalPodAutoscalerStatus, p *field.Path) field.ErrorList {
	var e check.Errors
	for i := range s.Conditions {
		if g := s.Conditions[i].ObservedGeneration; g != nil {
			e.AtLeastZero(p.Child("conditions").Index(i), "observedGeneration", *g)
		}
	}
	e.AtLeastZero(p, "currentReplicas", int64(s.CurrentReplicas))
	e.AtLeastZero(p, "desiredReplicas", int64(s.DesiredReplicas))
	return e.List
}
