package controller

import "github.com/prometheus/client_golang/prometheus"

var (
	queueLength = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "keelson_controller_queue_length", Help: "Keys that wait.",
	}, []string{"controller"})
	queueFull = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "keelson_controller_queue_full_total", Help: "How often an event had to wait for room in the queue.",
	}, []string{"controller"})
	queueWait = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "keelson_controller_queue_seconds", Help: "How long keys waited.",
		Buckets: []float64{.001, .01, .1, 1, 10, 60},
	}, []string{"controller"})
	reconcileTime = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "keelson_controller_reconcile_seconds", Help: "How long reconciles took.",
		Buckets: []float64{.001, .01, .1, 1, 10, 60},
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
	return []prometheus.Collector{queueLength, queueFull, queueWait, reconcileTime, reconciles, panics}
}
