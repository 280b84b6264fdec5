package autoscaling

import (
	"encoding/json"
	"maps"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// The annotations by which v1 shows what it has no fields for: metrics besides the
// target of CPU utilization, in v1's types, and behavior.
const (
	metricsAnnotation        = "autoscaling.alpha.kubernetes.io/metrics"
	currentMetricsAnnotation = "autoscaling.alpha.kubernetes.io/current-metrics"
	conditionsAnnotation     = "autoscaling.alpha.kubernetes.io/conditions"
	behaviorAnnotation       = "autoscaling.alpha.kubernetes.io/behavior"
)

type (
	v1 = autoscalingv1.HorizontalPodAutoscaler
	v2 = autoscalingv2.HorizontalPodAutoscaler
)

// HorizontalPodAutoscalerV1 is the row of horizontalpodautoscalers of v1: those of v2,
// seen through v1's fields and annotations. Its rules are v2's.
func HorizontalPodAutoscalerV1() *resource.Kind {
	k := row.Namespaced[v1, autoscalingv1.HorizontalPodAutoscalerList](
		autoscalingv1.SchemeGroupVersion, "horizontalpodautoscalers", "horizontalpodautoscalers")
	k.ShortNames = []string{"hpa"}
	k.Categories = []string{"all"}
	k.Columns = columns()
	k.Cells = func(o resource.Object) []any { return cells(toV2(o.(*v1))) }
	k.StoredAs = &resource.Conversion{
		GVK:  autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler"),
		To:   func(o resource.Object) resource.Object { return toV2(o.(*v1)) },
		From: func(o resource.Object) resource.Object { return toV1(o.(*v2)) },
	}
	k.Rules = resource.Typed[*v1]{
		Default:        defaultV1,
		PrepareCreate:  asV2(func(h *v2) { h.Status = autoscalingv2.HorizontalPodAutoscalerStatus{} }),
		PrepareUpdate:  bothAsV2(func(h, old *v2) { h.Status = old.Status }),
		Validate:       func(h *v1) field.ErrorList { return validate(toV2(h), nil) },
		ValidateUpdate: func(h, old *v1) field.ErrorList { return validate(toV2(h), toV2(old)) },
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*v1]{
			Default:        defaultV1,
			PrepareUpdate:  bothAsV2(func(h, old *v2) { h.Spec = old.Spec }),
			ValidateUpdate: func(h, old *v1) field.ErrorList { return validateStatus(toV2(h), toV2(old)) },
		}.Rules()),
	}
	return k
}

// asV2 applies a rule of v2 to an object of v1.
func asV2(rule func(h *v2)) func(h *v1) {
	return func(h *v1) {
		o := toV2(h)
		rule(o)
		*h = *toV1(o)
	}
}

func bothAsV2(rule func(h, old *v2)) func(h, old *v1) {
	return func(h, old *v1) { asV2(func(o *v2) { rule(o, toV2(old)) })(h) }
}

func defaultV1(h *v1) {
	if h.Spec.MinReplicas == nil {
		h.Spec.MinReplicas = new(int32(1))
	}
	// What is stored is completed with the defaults of v2.
	asV2(func(o *v2) { defaultBehavior(o.Spec.Behavior) })(h)
}

// ruleNames are the fields of behavior under the names that its annotation has: those
// of Go.
type (
	behaviorNames struct {
		ScaleUp, ScaleDown *ruleNames
	}
	ruleNames struct {
		StabilizationWindowSeconds *int32
		SelectPolicy               *autoscalingv2.ScalingPolicySelect
		Policies                   []policyNames
		Tolerance                  any
	}
	policyNames struct {
		Type                 autoscalingv2.HPAScalingPolicyType
		Value, PeriodSeconds int32
	}
)

func named(r *autoscalingv2.HPAScalingRules) *ruleNames {
	if r == nil {
		return nil
	}
	out := &ruleNames{StabilizationWindowSeconds: r.StabilizationWindowSeconds, SelectPolicy: r.SelectPolicy}
	if r.Tolerance != nil {
		out.Tolerance = r.Tolerance
	}
	for _, p := range r.Policies {
		out.Policies = append(out.Policies, policyNames(p))
	}
	return out
}

// annotate adds v as JSON to annotations that are the caller's own.
func annotate(annotations map[string]string, key string, v any) {
	if data, err := json.Marshal(v); err == nil { // the types can be written
		annotations[key] = string(data)
	}
}

// toV1 shows an object of v2 as one of v1.
func toV1(h *v2) *v1 {
	out := &v1{
		ObjectMeta: h.ObjectMeta,
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(h.Spec.ScaleTargetRef),
			MinReplicas:    h.Spec.MinReplicas,
			MaxReplicas:    h.Spec.MaxReplicas,
		},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{
			ObservedGeneration: h.Status.ObservedGeneration,
			LastScaleTime:      h.Status.LastScaleTime,
			CurrentReplicas:    h.Status.CurrentReplicas,
			DesiredReplicas:    h.Status.DesiredReplicas,
		},
	}
	out.Annotations = withoutCarried(h.Annotations)
	var metrics []autoscalingv1.MetricSpec
	for i := range h.Spec.Metrics {
		m := &h.Spec.Metrics[i]
		if m.Type != autoscalingv2.ResourceMetricSourceType || m.Resource == nil || m.Resource.Name != corev1.ResourceCPU ||
			m.Resource.Target.AverageUtilization == nil {
			metrics = append(metrics, specToV1(m))
		} else if out.Spec.TargetCPUUtilizationPercentage == nil {
			out.Spec.TargetCPUUtilizationPercentage = m.Resource.Target.AverageUtilization
		}
	}
	var current []autoscalingv1.MetricStatus
	for i := range h.Status.CurrentMetrics {
		m := &h.Status.CurrentMetrics[i]
		current = append(current, statusToV1(m))
		if m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil && m.Resource.Name == corev1.ResourceCPU &&
			m.Resource.Current.AverageUtilization != nil {
			out.Status.CurrentCPUUtilizationPercentage = m.Resource.Current.AverageUtilization
		}
	}
	if len(metrics)+len(current)+len(h.Status.Conditions) == 0 && h.Spec.Behavior == nil {
		return out
	}
	annotations := make(map[string]string, len(out.Annotations)+len(carried))
	maps.Copy(annotations, out.Annotations)
	if len(metrics) > 0 {
		annotate(annotations, metricsAnnotation, metrics)
	}
	if len(current) > 0 {
		annotate(annotations, currentMetricsAnnotation, current)
	}
	if b := h.Spec.Behavior; b != nil {
		annotate(annotations, behaviorAnnotation, behaviorNames{named(b.ScaleUp), named(b.ScaleDown)})
	}
	if len(h.Status.Conditions) > 0 {
		annotate(annotations, conditionsAnnotation, h.Status.Conditions)
	}
	out.Annotations = annotations
	return out
}

// toV2 is what an object of v1 means. Annotations that cannot be read mean nothing.
func toV2(h *v1) *v2 {
	out := &v2{
		ObjectMeta: h.ObjectMeta,
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(h.Spec.ScaleTargetRef),
			MinReplicas:    h.Spec.MinReplicas,
			MaxReplicas:    h.Spec.MaxReplicas,
		},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{
			ObservedGeneration: h.Status.ObservedGeneration,
			LastScaleTime:      h.Status.LastScaleTime,
			CurrentReplicas:    h.Status.CurrentReplicas,
			DesiredReplicas:    h.Status.DesiredReplicas,
		},
	}
	out.Annotations = withoutCarried(h.Annotations)
	read := func(key string, to any) bool {
		text, ok := h.Annotations[key]
		return ok && json.Unmarshal([]byte(text), to) == nil
	}
	var metrics []autoscalingv1.MetricSpec
	if read(metricsAnnotation, &metrics) {
		for i := range metrics {
			out.Spec.Metrics = append(out.Spec.Metrics, specToV2(&metrics[i]))
		}
	}
	if percent := h.Spec.TargetCPUUtilizationPercentage; percent != nil {
		out.Spec.Metrics = append(out.Spec.Metrics, utilization(*percent))
	}
	if len(out.Spec.Metrics) == 0 {
		out.Spec.Metrics = []autoscalingv2.MetricSpec{utilization(defaultUtilization)}
	}
	// The names differ from those of the API in the case of letters alone, which does
	// not count.
	var behavior autoscalingv2.HorizontalPodAutoscalerBehavior
	if read(behaviorAnnotation, &behavior) && behavior != (autoscalingv2.HorizontalPodAutoscalerBehavior{}) {
		out.Spec.Behavior = &behavior
	}
	var current []autoscalingv1.MetricStatus
	if read(currentMetricsAnnotation, &current) {
		for i := range current {
			out.Status.CurrentMetrics = append(out.Status.CurrentMetrics, statusToV2(&current[i]))
		}
	} else if percent := h.Status.CurrentCPUUtilizationPercentage; percent != nil {
		out.Status.CurrentMetrics = []autoscalingv2.MetricStatus{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricStatus{
				Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: percent},
			},
		}}
	}
	var conditions []autoscalingv2.HorizontalPodAutoscalerCondition
	if read(conditionsAnnotation, &conditions) {
		out.Status.Conditions = conditions
	}
	return out
}
