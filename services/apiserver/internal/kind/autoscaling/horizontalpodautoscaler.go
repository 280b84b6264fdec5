package autoscaling

import (
	"maps"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// HorizontalPodAutoscaler is the row of horizontalpodautoscalers of v2, which all are
// stored as.
func HorizontalPodAutoscaler() *resource.Kind {
	k := row.Namespaced[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](
		autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", "horizontalpodautoscalers")
	k.ShortNames = []string{"hpa"}
	k.Categories = []string{"all"}
	k.Columns = columns()
	k.Cells = func(o resource.Object) []any { return cells(o.(*autoscalingv2.HorizontalPodAutoscaler)) }
	k.Rules = resource.Typed[*autoscalingv2.HorizontalPodAutoscaler]{
		Default: defaultAutoscaler,
		PrepareCreate: func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Status = autoscalingv2.HorizontalPodAutoscalerStatus{}
		},
		PrepareUpdate:  func(h, old *autoscalingv2.HorizontalPodAutoscaler) { h.Status = old.Status },
		Validate:       func(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList { return validate(h, nil) },
		ValidateUpdate: validate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*autoscalingv2.HorizontalPodAutoscaler]{
			Default:        defaultAutoscaler,
			PrepareUpdate:  func(h, old *autoscalingv2.HorizontalPodAutoscaler) { h.Spec = old.Spec },
			ValidateUpdate: validateStatus,
		}.Rules()),
	}
	return k
}

// The defaults of an autoscaler. Those of behavior fill what a part of it leaves out;
// where there is none, the controller has the same.
const (
	defaultUtilization = 80
	defaultPeriod      = 15
	defaultPercent     = 100
	defaultPods        = 4
)

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	if h.Spec.MinReplicas == nil {
		h.Spec.MinReplicas = new(int32(1))
	}
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []autoscalingv2.MetricSpec{utilization(defaultUtilization)}
	}
	h.Annotations = withoutCarried(h.Annotations)
	defaultBehavior(h.Spec.Behavior)
}

// utilization is the metric of pods' use of CPU, in percent of their requests.
func utilization(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{
		Type: autoscalingv2.ResourceMetricSourceType,
		Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
		},
	}
}

func defaultBehavior(b *autoscalingv2.HorizontalPodAutoscalerBehavior) {
	if b == nil {
		return
	}
	if b.ScaleUp == nil {
		b.ScaleUp = &autoscalingv2.HPAScalingRules{}
	}
	if b.ScaleUp.StabilizationWindowSeconds == nil {
		b.ScaleUp.StabilizationWindowSeconds = new(int32(0))
	}
	percent := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: defaultPercent, PeriodSeconds: defaultPeriod}
	defaultRules(b.ScaleUp,
		autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: defaultPods, PeriodSeconds: defaultPeriod}, percent)
	if b.ScaleDown == nil {
		b.ScaleDown = &autoscalingv2.HPAScalingRules{}
	}
	defaultRules(b.ScaleDown, percent)
}

func defaultRules(r *autoscalingv2.HPAScalingRules, policies ...autoscalingv2.HPAScalingPolicy) {
	if r.SelectPolicy == nil {
		r.SelectPolicy = new(autoscalingv2.MaxChangePolicySelect)
	}
	if r.Policies == nil {
		r.Policies = policies
	}
}

// carried are the annotations by which v1 shows what only v2 has fields for. They are
// never stored.
var carried = []string{
	metricsAnnotation, currentMetricsAnnotation, conditionsAnnotation, behaviorAnnotation,
	"autoscaling.alpha.kubernetes.io/scale-down-tolerance", "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
}

// withoutCarried is annotations without those, copied if any is there.
func withoutCarried(annotations map[string]string) map[string]string {
	copied := false
	for _, key := range carried {
		if _, ok := annotations[key]; !ok {
			continue
		}
		if !copied {
			annotations, copied = maps.Clone(annotations), true
		}
		delete(annotations, key)
	}
	return annotations
}

func validateStatus(h, _ *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	return statusErrors(&h.Status, field.NewPath("status"))
}
