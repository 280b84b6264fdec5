package controller

import "github.com/prometheus/client_golang/prometheus"

// Metrics of queues have the names and labels of Kubernetes' controllers.
var (
	queueLength = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "workqueue_depth", Help: "Keys that wait.",
	}, []string{"name"})
	queueAdds = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "workqueue_adds_total", Help: "Keys that were reconciled, again after each event.",
	}, []string{"name"})
	queueRetries = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "workqueue_retries_total", Help: "Keys that wait because their reconcile failed or read stale caches.",
	}, []string{"name"})
	queueWait = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "workqueue_queue_duration_seconds", Help: "How long keys waited.",
		Buckets: []float64{.001, .01, .1, 1, 10, 60},
	}, []string{"name"})
	reconcileTime = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "workqueue_work_duration_seconds", Help: "How long reconciles took.",
		Buckets: []float64{.001, .01, .1, 1, 10, 60},
	}, []string{"name"})
	queueFull = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keelson_controller_queue_full_total", Help: "How often an event had to wait for room in the queue.",
	}, []string{"controller"})
	reconciles = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keelson_controller_reconciles_total", Help: "Reconciles by outcome.",
	}, []string{"controller", "outcome"})
	panics = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keelson_controller_panics_total", Help: "Reconciles that panicked.",
	}, []string{"controller"})
)

// Collectors returns the metrics of all controllers of the process. Register them once per
// registry.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{queueLength, queueAdds, queueRetries, queueWait, reconcileTime, queueFull, reconciles, panics}
}
