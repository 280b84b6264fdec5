package scheduler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keelson.dev/services/scheduler/internal/decide"
)

// metrics of the scheduler, named as Kubernetes names them where it has the same.
type metrics struct {
	attempts  *prometheus.CounterVec
	deciding  prometheus.Histogram
	waiting   prometheus.Histogram
	tries     prometheus.Histogram
	unbound   prometheus.Counter
	preempts  prometheus.Counter
	victims   prometheus.Histogram
	collected []prometheus.Collector
}

func newMetrics() *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "scheduler_schedule_attempts_total", Help: "Decisions, by result: scheduled or unschedulable.",
		}, []string{"result"}),
		deciding: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "scheduler_scheduling_algorithm_duration_seconds", Help: "Time of one decision.",
			Buckets: prometheus.ExponentialBuckets(10e-6, 2, 16),
		}),
		waiting: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "scheduler_pod_scheduling_sli_duration_seconds", Help: "Time from a pod's arrival to its binding.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 20),
		}),
		tries: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "scheduler_pod_scheduling_attempts", Help: "Attempts until a pod was bound.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 5),
		}),
		unbound: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "scheduler_bind_failures_total", Help: "Decisions that were taken back because the binding failed.",
		}),
	}
	m.preempts = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "scheduler_preemption_attempts_total", Help: "Attempts to make room for a pod by evicting pods of lower priority.",
	})
	m.victims = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "scheduler_preemption_victims", Help: "Pods evicted by one preemption.",
		Buckets: prometheus.ExponentialBuckets(1, 2, 7),
	})
	m.collected = []prometheus.Collector{m.attempts, m.deciding, m.waiting, m.tries, m.unbound, m.preempts, m.victims}
	return m
}

func (m *metrics) attempt(found bool, took time.Duration) {
	result := "unschedulable"
	if found {
		result = "scheduled"
	}
	m.attempts.WithLabelValues(result).Inc()
	m.deciding.Observe(took.Seconds())
}

func (m *metrics) scheduled(after time.Duration, attempts int) {
	m.waiting.Observe(after.Seconds())
	m.tries.Observe(float64(attempts))
}

func (m *metrics) preempted(p *decide.Preemption) {
	m.preempts.Inc()
	if p.Node != nil {
		m.victims.Observe(float64(len(p.Victims)))
	}
}

func (m *metrics) failed() { m.unbound.Inc() }

// Collectors are the scheduler's metrics.
func (s *Scheduler) Collectors() []prometheus.Collector {
	pending := func(name string, read func(a, b, u, g int) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "scheduler_pending_pods", Help: "Pods that wait, by place.", ConstLabels: prometheus.Labels{"queue": name},
		}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(read(s.queue.Len()))
		})
	}
	return append(s.metrics.collected,
		pending("active", func(a, _, _, _ int) int { return a }),
		pending("backoff", func(_, b, _, _ int) int { return b }),
		pending("unschedulable", func(_, _, u, _ int) int { return u }),
		pending("gated", func(_, _, _, g int) int { return g }),
	)
}
