package kubeletapi

import (
	"context"
	"net/http"
	"path"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"keelson.dev/services/node/internal/usage"
)

// gathered serves the metrics of a gatherer, if it is not nil, and those that collect sends.
func (s *Server) gathered(always prometheus.Gatherer, collect func(context.Context, sink) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		registry := prometheus.NewPedanticRegistry()
		if collect != nil {
			var found collected
			if err := collect(r.Context(), func(m prometheus.Metric) { found = append(found, m) }); err != nil {
				unavailable(w, err)
				return
			}
			registry.MustRegister(found)
		}
		from := prometheus.Gatherers{registry}
		if always != nil {
			from = append(from, always)
		}
		promhttp.HandlerFor(from, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, r)
	})
}

// sink takes a metric.
type sink func(prometheus.Metric)

// collected is the metrics of one request.
type collected []prometheus.Metric

// Describe implements prometheus.Collector: the metrics are not known in advance.
func (collected) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collected) Collect(out chan<- prometheus.Metric) {
	for _, m := range c {
		out <- m
	}
}

// family is a metric with its labels.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func counter(name, help string, labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.CounterValue}
}

func gauge(name, help string, labels ...string) family {
	return family{prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue}
}

// put sends a value, as of a time unless that is zero.
func (f family) put(to sink, at time.Time, value float64, labels ...string) {
	m := prometheus.MustNewConstMetric(f.desc, f.kind, value, labels...)
	if !at.IsZero() {
		m = prometheus.NewMetricWithTimestamp(at, m)
	}
	to(m)
}

// Metrics of /metrics/resource, as the kubelet documents them.
var (
	nodeCPU         = counter("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds")
	nodeMemory      = gauge("node_memory_working_set_bytes", "Current working set of the node in bytes")
	podCPU          = counter("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", "pod", "namespace")
	podMemory       = gauge("pod_memory_working_set_bytes", "Current working set of the pod in bytes", "pod", "namespace")
	containerCPU    = counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", "container", "pod", "namespace")
	containerMemory = gauge("container_memory_working_set_bytes", "Current working set of the container in bytes", "container", "pod", "namespace")
	containerStart  = gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds", "container", "pod", "namespace")
	scrapeError     = gauge("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise")
)

func (s *Server) resources(ctx context.Context, to sink) error {
	report, err := s.cfg.Meter.Read(ctx, usage.Want{})
	if err != nil {
		scrapeError.put(to, time.Time{}, 1)
		return nil
	}
	scrapeError.put(to, time.Time{}, 0)
	at := report.Time
	nodeCPU.put(to, at, report.Node.CPU.Used.Seconds())
	nodeMemory.put(to, at, float64(report.Node.Memory.WorkingSet))
	for _, p := range unique(report.Pods) {
		podCPU.put(to, at, p.CPU.Used.Seconds(), p.Name, p.Namespace)
		podMemory.put(to, at, float64(p.Memory.WorkingSet), p.Name, p.Namespace)
		for i := range p.Containers {
			c := &p.Containers[i]
			containerCPU.put(to, at, c.CPU.Used.Seconds(), c.Name, p.Name, p.Namespace)
			containerMemory.put(to, at, float64(c.Memory.WorkingSet), c.Name, p.Name, p.Namespace)
			containerStart.put(to, time.Time{}, seconds(c.Start), c.Name, p.Name, p.Namespace)
		}
	}
	return nil
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// unique leaves out a pod whose successor has the same name: the older one is about to go.
func unique(pods []usage.Pod) []*usage.Pod {
	var out []*usage.Pod
	for i := range pods {
		p := &pods[i]
		if n := len(out); n > 0 && out[n-1].Name == p.Name && out[n-1].Namespace == p.Namespace {
			if p.Start.After(out[n-1].Start) {
				out[n-1] = p
			}
			continue
		}
		out = append(out, p)
	}
	return out
}

// Labels of cAdvisor's metrics. The network is the pod's, and so are its labels.
var (
	byContainer = []string{"container", "id", "image", "name", "namespace", "pod"}
	byInterface = append([]string{"interface"}, byContainer...)
)

func label(also ...string) []string { return append(also, byContainer...) }

// Metrics of /metrics/cadvisor, by the names and with the labels that dashboards expect.
var (
	cadvisorCPU         = counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", label("cpu")...)
	cadvisorPeriods     = counter("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", byContainer...)
	cadvisorThrottled   = counter("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", byContainer...)
	cadvisorThrottleSec = counter("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", byContainer...)
	cadvisorUsage       = gauge("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", byContainer...)
	cadvisorWorkingSet  = gauge("container_memory_working_set_bytes", "Current working set in bytes.", byContainer...)
	cadvisorRSS         = gauge("container_memory_rss", "Size of RSS in bytes.", byContainer...)
	cadvisorCache       = gauge("container_memory_cache", "Number of bytes of page cache memory.", byContainer...)
	cadvisorFailures    = counter("container_memory_failures_total", "Cumulative count of memory allocation failures.", label("failure_type", "scope")...)
	cadvisorLimit       = gauge("container_spec_memory_limit_bytes", "Memory limit for the container.", byContainer...)
	cadvisorThreads     = gauge("container_threads", "Number of threads running inside the container", byContainer...)
	cadvisorStart       = gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", byContainer...)
	cadvisorSeen        = gauge("container_last_seen", "Last time a container was seen by the exporter", byContainer...)
	cadvisorFS          = gauge("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", label("device")...)
	cadvisorFSLimit     = gauge("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", label("device")...)
	cadvisorInodes      = gauge("container_fs_inodes_total", "Number of Inodes", label("device")...)
	cadvisorInodesFree  = gauge("container_fs_inodes_free", "Number of available Inodes", label("device")...)
	machineCores        = gauge("machine_cpu_cores", "Number of logical CPU cores.")
	machineMemory       = gauge("machine_memory_bytes", "Amount of memory installed on the machine.")

	rxBytes   = counter("container_network_receive_bytes_total", "Cumulative count of bytes received", byInterface...)
	rxPackets = counter("container_network_receive_packets_total", "Cumulative count of packets received", byInterface...)
	rxErrors  = counter("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", byInterface...)
	rxDropped = counter("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving", byInterface...)
	txBytes   = counter("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", byInterface...)
	txPackets = counter("container_network_transmit_packets_total", "Cumulative count of packets transmitted", byInterface...)
	txErrors  = counter("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", byInterface...)
	txDropped = counter("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting", byInterface...)
)

// imageDevice stands for the file system of writable layers.
const imageDevice = "imagefs"

func (s *Server) cadvisor(ctx context.Context, to sink) error {
	report, err := s.cfg.Meter.Read(ctx, usage.Want{Disk: true})
	if err != nil {
		return err
	}
	at := report.Time
	machineCores.put(to, time.Time{}, float64(runtime.NumCPU()))
	machineMemory.put(to, time.Time{}, float64(report.Node.Memory.Limit))
	root := []string{"", "/", "", "", "", ""}
	putGroup(to, at, report.Node.CPU, report.Node.Memory, report.Node.Start, report.Node.PIDs, root)
	putNetwork(to, at, report.Node.Network, root)
	for i := range report.Pods {
		p := &report.Pods[i]
		group := "/pod" + string(p.UID)
		whole := []string{"", group, "", "", p.Namespace, p.Name}
		putGroup(to, at, p.CPU, p.Memory, p.Start, p.PIDs, whole)
		putNetwork(to, at, p.Network, whole)
		for j := range p.Containers {
			c := &p.Containers[j]
			labels := []string{c.Name, path.Join(group, c.ID), c.Image, c.ID, p.Namespace, p.Name}
			putGroup(to, at, c.CPU, c.Memory, c.Start, c.PIDs, labels)
			disk := append([]string{imageDevice}, labels...)
			cadvisorFS.put(to, at, float64(c.Rootfs.Used), disk...)
			cadvisorFSLimit.put(to, at, float64(c.Rootfs.Capacity), disk...)
			cadvisorInodes.put(to, at, float64(c.Rootfs.Inodes), disk...)
			cadvisorInodesFree.put(to, at, float64(c.Rootfs.InodesFree), disk...)
		}
	}
	return nil
}

// putGroup sends what is known of a cgroup.
func putGroup(to sink, at time.Time, c usage.CPU, m usage.Memory, start time.Time, threads uint64, labels []string) {
	cadvisorCPU.put(to, at, c.Used.Seconds(), append([]string{"total"}, labels...)...)
	if c.Periods > 0 {
		cadvisorPeriods.put(to, at, float64(c.Periods), labels...)
		cadvisorThrottled.put(to, at, float64(c.ThrottledPeriods), labels...)
		cadvisorThrottleSec.put(to, at, c.Throttled.Seconds(), labels...)
	}
	cadvisorUsage.put(to, at, float64(m.Usage), labels...)
	cadvisorWorkingSet.put(to, at, float64(m.WorkingSet), labels...)
	cadvisorRSS.put(to, at, float64(m.RSS), labels...)
	cadvisorCache.put(to, at, float64(m.Cache), labels...)
	cadvisorFailures.put(to, at, float64(m.PageFaults), append([]string{"pgfault", "hierarchy"}, labels...)...)
	cadvisorFailures.put(to, at, float64(m.MajorPageFaults), append([]string{"pgmajfault", "hierarchy"}, labels...)...)
	cadvisorLimit.put(to, time.Time{}, float64(m.Limit), labels...)
	cadvisorThreads.put(to, at, float64(threads), labels...)
	cadvisorSeen.put(to, at, float64(at.Unix()), labels...)
	if !start.IsZero() {
		cadvisorStart.put(to, time.Time{}, seconds(start), labels...)
	}
}

func putNetwork(to sink, at time.Time, n usage.Network, labels []string) {
	for _, i := range n.Interfaces {
		all := append([]string{i.Name}, labels...)
		rxBytes.put(to, at, float64(i.RxBytes), all...)
		rxPackets.put(to, at, float64(i.RxPackets), all...)
		rxErrors.put(to, at, float64(i.RxErrors), all...)
		rxDropped.put(to, at, float64(i.RxDropped), all...)
		txBytes.put(to, at, float64(i.TxBytes), all...)
		txPackets.put(to, at, float64(i.TxPackets), all...)
		txErrors.put(to, at, float64(i.TxErrors), all...)
		txDropped.put(to, at, float64(i.TxDropped), all...)
	}
}

// Metrics of volumes with a claim, which the kubelet has in /metrics.
var (
	volumeCapacity   = gauge("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", "namespace", "persistentvolumeclaim")
	volumeAvailable  = gauge("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", "namespace", "persistentvolumeclaim")
	volumeUsed       = gauge("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", "namespace", "persistentvolumeclaim")
	volumeInodes     = gauge("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", "namespace", "persistentvolumeclaim")
	volumeInodesFree = gauge("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", "namespace", "persistentvolumeclaim")
	volumeInodesUsed = gauge("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", "namespace", "persistentvolumeclaim")
	runningPods      = gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox")
	runningContainer = gauge("kubelet_running_containers", "Number of containers currently running", "container_state")
)

// volumes sends the kubelet's metrics that come from a measurement. The other metrics of the
// node do not depend on it: if it fails, they are served alone.
func (s *Server) volumes(ctx context.Context, to sink) error {
	report, err := s.cfg.Meter.Read(ctx, usage.Want{Disk: true, MaxAge: time.Minute, DiskMaxAge: time.Minute})
	if err != nil {
		return nil
	}
	seen := map[[2]string]bool{} // pods may share a claim
	containers := 0
	for i := range report.Pods {
		p := &report.Pods[i]
		containers += len(p.Containers)
		for _, v := range p.Volumes {
			key := [2]string{p.Namespace, v.Claim}
			if v.Claim == "" || seen[key] {
				continue
			}
			seen[key] = true
			volumeCapacity.put(to, time.Time{}, float64(v.FS.Capacity), key[:]...)
			volumeAvailable.put(to, time.Time{}, float64(v.FS.Available), key[:]...)
			volumeUsed.put(to, time.Time{}, float64(v.FS.Used), key[:]...)
			volumeInodes.put(to, time.Time{}, float64(v.FS.Inodes), key[:]...)
			volumeInodesFree.put(to, time.Time{}, float64(v.FS.InodesFree), key[:]...)
			volumeInodesUsed.put(to, time.Time{}, float64(v.FS.InodesUsed), key[:]...)
		}
	}
	runningPods.put(to, time.Time{}, float64(len(report.Pods)))
	runningContainer.put(to, time.Time{}, float64(containers), "running")
	return nil
}
