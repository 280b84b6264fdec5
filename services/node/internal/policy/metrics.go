package policy

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the metrics of policies. A nil *Metrics records nothing.
type Metrics struct {
	duration   prometheus.Histogram
	failures   prometheus.Counter
	repairs    prometheus.Counter
	operations prometheus.Counter
	cut        prometheus.Counter
	policies   prometheus.Gauge
	isolated   prometheus.Gauge
}

// NewMetrics creates and registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "keelson_policy_sync_duration_seconds",
			Help:    "Time of a pass that changed the rules of network policies, from the plan to the kernel's commit.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_policy_sync_failures_total", Help: "Passes that failed."}),
		repairs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_policy_repairs_total", Help: "Number of times that another program changed the table."}),
		operations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_policy_operations_total", Help: "nftables operations in committed transactions."}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "keelson_policy_connections_cut_total", Help: "Connections that were ended because a policy forbids them."}),
		policies: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "keelson_policy_policies", Help: "NetworkPolicies in the cluster."}),
		isolated: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "keelson_policy_isolated_pods", Help: "Pods of this node that a NetworkPolicy selects."}),
	}
	r.MustRegister(m.duration, m.failures, m.repairs, m.operations, m.cut, m.policies, m.isolated)
	return m
}

func (m *Metrics) applied(a Applied) {
	if m == nil {
		return
	}
	if a.Operations > 0 {
		m.duration.Observe(a.Took.Seconds())
	}
	m.operations.Add(float64(a.Operations))
	m.cut.Add(float64(a.Cut))
	m.policies.Set(float64(a.Policies))
	m.isolated.Set(float64(a.Isolated))
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
