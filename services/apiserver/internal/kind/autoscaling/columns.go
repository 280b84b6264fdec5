package autoscaling

import (
	"fmt"
	"strconv"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/column"
)

func columns() []metav1.TableColumnDefinition {
	spec, status := autoscalingv2.HorizontalPodAutoscalerSpec{}, autoscalingv2.HorizontalPodAutoscalerStatus{}
	return []metav1.TableColumnDefinition{
		column.Text("Reference", column.Doc(spec, "scaleTargetRef")),
		column.Text("Targets", column.Doc(spec, "metrics")),
		column.Text("MinPods", column.Doc(spec, "minReplicas")),
		column.Text("MaxPods", column.Doc(spec, "maxReplicas")),
		column.Text("Replicas", column.Doc(status, "currentReplicas")),
		column.AgeColumn(),
	}
}

func cells(h *autoscalingv2.HorizontalPodAutoscaler) []any {
	least := column.Unset
	if h.Spec.MinReplicas != nil {
		least = strconv.Itoa(int(*h.Spec.MinReplicas))
	}
	return []any{
		h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name, targets(h), least,
		int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), column.Age(h.CreationTimestamp),
	}
}

// shownTargets is how many metrics a cell names.
const shownTargets = 2

// targets shows what the metrics are and should be.
func targets(h *autoscalingv2.HorizontalPodAutoscaler) string {
	if len(h.Spec.Metrics) == 0 {
		return column.None
	}
	var list []string
	for i := range h.Spec.Metrics {
		status := &autoscalingv2.MetricStatus{}
		if i < len(h.Status.CurrentMetrics) {
			status = &h.Status.CurrentMetrics[i]
		}
		list = append(list, target(&h.Spec.Metrics[i], status))
	}
	text := strings.Join(list[:min(len(list), shownTargets)], ", ")
	if more := len(list) - shownTargets; more > 0 {
		text += fmt.Sprintf(" + %d more...", more)
	}
	return text
}

func target(m *autoscalingv2.MetricSpec, s *autoscalingv2.MetricStatus) string {
	var now *autoscalingv2.MetricValueStatus
	switch {
	case m.Type == autoscalingv2.ExternalMetricSourceType && m.External != nil:
		if s.External != nil {
			now = &s.External.Current
		}
		return valueOrAverage(&m.External.Target, now)
	case m.Type == autoscalingv2.ObjectMetricSourceType && m.Object != nil:
		if s.Object != nil {
			now = &s.Object.Current
		}
		return valueOrAverage(&m.Object.Target, now)
	case m.Type == autoscalingv2.PodsMetricSourceType && m.Pods != nil:
		var current *resource.Quantity
		if s.Pods != nil {
			current = s.Pods.Current.AverageValue
		}
		return quantity(current) + "/" + quantity(m.Pods.Target.AverageValue)
	case m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil:
		if s.Resource != nil {
			now = &s.Resource.Current
		}
		return string(m.Resource.Name) + ": " + used(&m.Resource.Target, now)
	case m.Type == autoscalingv2.ContainerResourceMetricSourceType && m.ContainerResource != nil:
		if s.ContainerResource != nil {
			now = &s.ContainerResource.Current
		}
		return string(m.ContainerResource.Name) + ": " + used(&m.ContainerResource.Target, now)
	}
	return "<unknown type>"
}

func quantity(q *resource.Quantity) string {
	if q == nil {
		return column.Unknown
	}
	return q.String()
}

func valueOrAverage(t *autoscalingv2.MetricTarget, now *autoscalingv2.MetricValueStatus) string {
	var value, average *resource.Quantity
	if now != nil {
		value, average = now.Value, now.AverageValue
	}
	if t.AverageValue != nil {
		return quantity(average) + "/" + quantity(t.AverageValue) + " (avg)"
	}
	return quantity(value) + "/" + quantity(t.Value)
}

// used shows the use of a resource, as an amount or in percent of the requests.
func used(t *autoscalingv2.MetricTarget, now *autoscalingv2.MetricValueStatus) string {
	percent := func(n *int32, none string) string {
		if n == nil {
			return none
		}
		return strconv.Itoa(int(*n)) + "%"
	}
	var average *resource.Quantity
	var utilized *int32
	if now != nil {
		average, utilized = now.AverageValue, now.AverageUtilization
	}
	if t.AverageValue != nil {
		return quantity(average) + "/" + quantity(t.AverageValue)
	}
	return percent(utilized, column.Unknown) + "/" + percent(t.AverageUtilization, "<auto>")
}
