package agent

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
)

// A container is counted once for each time that its status becomes terminated.
func TestTerminatedContainersAreCountedOnce(t *testing.T) {
	running := corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	ended := corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 139, Reason: "Error"}}}
	status := func(c corev1.ContainerStatus) *corev1.PodStatus {
		return &corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{c}}
	}
	registry := prometheus.NewRegistry()
	m := NewMetrics(registry)
	m.changed(&corev1.PodStatus{}, status(running))
	m.changed(status(running), status(ended))
	m.changed(status(ended), status(ended))
	m.changed(status(ended), status(running))
	m.changed(status(running), status(ended))
	m.changed(&corev1.PodStatus{}, &corev1.PodStatus{InitContainerStatuses: []corev1.ContainerStatus{ended}})
	const want = `
		# HELP kubelet_terminated_containers_total Containers that have ended, by type, exit code and reason.
		# TYPE kubelet_terminated_containers_total counter
		kubelet_terminated_containers_total{container_type="container",exit_code="139",reason="Error"} 2
		kubelet_terminated_containers_total{container_type="init_container",exit_code="139",reason="Error"} 1
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	(*Metrics)(nil).changed(status(running), status(ended))
}
