package dns

import (
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the metrics of cluster DNS. A nil *Metrics records nothing.
type Metrics struct {
	answers  *prometheus.CounterVec
	duration *prometheus.HistogramVec
	hits     prometheus.Counter
	failures prometheus.Counter
	busy     prometheus.Counter
}

// NewMetrics creates and registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keelson_dns_answers_total", Help: "Answers by source and response code."}, []string{"from", "rcode"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keelson_dns_duration_seconds", Help: "Time from receiving a question until its answer is ready to send.",
			Buckets: []float64{.0001, .00025, .0005, .001, .005, .01, .05, .1, .5, 1, 5}}, []string{"from"}),
		hits: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_dns_cache_hits_total", Help: "Upstream questions answered from the cache."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_dns_upstream_failures_total", Help: "Tries that failed or got an error from an upstream server."}),
		busy: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_dns_upstream_busy_total", Help: "Questions refused because too many were in progress."}),
	}
	r.MustRegister(m.answers, m.duration, m.hits, m.failures, m.busy)
	return m
}

func (m *Metrics) answered(from string, rcode int, took time.Duration) {
	if m == nil {
		return
	}
	code, ok := mdns.RcodeToString[rcode]
	if !ok {
		code = "other"
	}
	m.answers.WithLabelValues(from, code).Inc()
	m.duration.WithLabelValues(from).Observe(took.Seconds())
}

func (m *Metrics) hit() {
	if m != nil {
		m.hits.Inc()
	}
}

func (m *Metrics) upstreamFailed() {
	if m != nil {
		m.failures.Inc()
	}
}

func (m *Metrics) refused() {
	if m != nil {
		m.busy.Inc()
	}
}
