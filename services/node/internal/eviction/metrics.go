package eviction

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts evictions. A nil *Metrics counts nothing.
type Metrics struct {
	evictions *prometheus.CounterVec
}

// NewMetrics creates and registers the metrics, under the kubelet's names.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kubelet_evictions", Help: "Pods that the node evicted, by the signal or the limit that was exceeded.",
	}, []string{"eviction_signal"})}
	r.MustRegister(m.evictions)
	return m
}

func (m *Metrics) evicted(signal string) {
	if m != nil {
		m.evictions.WithLabelValues(signal).Inc()
	}
}
