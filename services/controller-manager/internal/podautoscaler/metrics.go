package podautoscaler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics, by Kubernetes' names.
var (
	evaluations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "horizontal_pod_autoscaler_controller_reconciliations_total", Help: "Evaluations of autoscalers, by what they did (scale_up, scale_down, none) and whether a metric failed (internal, none).",
	}, []string{"action", "error"})
	evaluationTime = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "horizontal_pod_autoscaler_controller_reconciliation_duration_seconds", Help: "Time of an evaluation.",
		Buckets: []float64{.001, .01, .1, 1, 10, 60},
	}, []string{"action", "error"})
	desired = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "horizontal_pod_autoscaler_controller_desired_replicas", Help: "Replicas that an autoscaler asks for.",
	}, []string{"namespace", "hpa_name"})
)

// Collectors returns the controller's metrics. Register them once per registry.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{evaluations, evaluationTime, desired}
}

// count counts an evaluation.
func count(d *Decision, failed bool, took time.Duration) {
	action, problem := "none", "none"
	switch {
	case !d.Rescale || failed:
	case d.Replicas > d.current:
		action = "scale_up"
	default:
		action = "scale_down"
	}
	if d.Err != nil || failed {
		problem = "internal"
	}
	evaluations.WithLabelValues(action, problem).Inc()
	evaluationTime.WithLabelValues(action, problem).Observe(took.Seconds())
	desired.WithLabelValues(d.hpa.Namespace, d.hpa.Name).Set(float64(d.Status.DesiredReplicas))
}
