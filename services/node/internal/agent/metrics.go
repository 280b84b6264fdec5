package agent

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// Metrics counts what happens to containers. A nil *Metrics counts nothing.
type Metrics struct {
	terminated *prometheus.CounterVec
}

// NewMetrics creates and registers the metrics, under the kubelet's names.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{terminated: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "kubelet_terminated_containers_total", Help: "Containers that have ended, by type, exit code and reason.",
	}, []string{"container_type", "exit_code", "reason"})}
	r.MustRegister(m.terminated)
	return m
}

// changed counts the containers that have ended between two statuses of a pod.
func (m *Metrics) changed(was, is *corev1.PodStatus) {
	if m == nil {
		return
	}
	m.ended("init_container", was.InitContainerStatuses, is.InitContainerStatuses)
	m.ended("container", was.ContainerStatuses, is.ContainerStatuses)
	m.ended("ephemeral_container", was.EphemeralContainerStatuses, is.EphemeralContainerStatuses)
}

func (m *Metrics) ended(kind string, was, is []corev1.ContainerStatus) {
	ended := make(map[string]bool, len(was))
	for i := range was {
		ended[was[i].Name] = was[i].State.Terminated != nil
	}
	for i := range is {
		if t := is[i].State.Terminated; t != nil && !ended[is[i].Name] {
			m.terminated.WithLabelValues(kind, strconv.Itoa(int(t.ExitCode)), t.Reason).Inc()
		}
	}
}
