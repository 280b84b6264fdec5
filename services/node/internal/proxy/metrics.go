package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the proxy's metrics. A nil *Metrics records nothing.
type Metrics struct {
	duration   *prometheus.HistogramVec
	failures   prometheus.Counter
	repairs    prometheus.Counter
	services   prometheus.Gauge
	lastSync   prometheus.Gauge
	operations prometheus.Counter
}

// NewMetrics creates and registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "keelson_proxy_sync_duration_seconds",
			Help:    "Time from the first change that was noticed until the kernel's commit.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"full"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_proxy_sync_failures_total", Help: "Transactions that the kernel refused."}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_proxy_repairs_total", Help: "Number of times that another program changed the table."}),
		services: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "keelson_proxy_services", Help: "Services that have rules."}),
		lastSync: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "keelson_proxy_last_sync_timestamp_seconds", Help: "When the table was last known to be up to date."}),
		operations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_proxy_operations_total", Help: "nftables operations in committed transactions."}),
	}
	r.MustRegister(m.duration, m.failures, m.repairs, m.services, m.lastSync, m.operations)
	return m
}

func (m *Metrics) applied(a Applied, s *syncer) {
	if m == nil {
		return
	}
	full := "false"
	if a.Full {
		full = "true"
	}
	if a.Operations > 0 {
		m.duration.WithLabelValues(full).Observe(a.Took.Seconds())
	}
	m.operations.Add(float64(a.Operations))
	m.services.Set(float64(len(s.state.fragments)))
	m.lastSync.Set(float64(time.Now().UnixMilli()) / 1000)
}

func (m *Metrics) failed() {
	if m != nil {
		m.failures.Inc()
	}
}

func (m *Metrics) repaired() {
	if m != nil {
		m.repairs.Inc()
	}
}
