package kubeletapi

import (
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"keelson.dev/services/node/internal/usage"
)

// summary serves the Summary, or with ?only_cpu_and_memory=true the part of it that costs no
// disk reads.
func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	brief := false
	if v := r.URL.Query().Get("only_cpu_and_memory"); v != "" {
		brief, _ = strconv.ParseBool(v) // as the kubelet, which takes anything else for false
	}
	report, err := s.cfg.Meter.Read(r.Context(), usage.Want{Disk: !brief})
	if err != nil {
		unavailable(w, err)
		return
	}
	writeJSON(w, summarize(s.cfg.Node, report, brief))
}

// summarize is a pure function of a measurement.
func summarize(node string, report *usage.Report, brief bool) *stats.Summary {
	n := &report.Node
	at := metav1.NewTime(n.Time)
	out := &stats.Summary{
		Node: stats.NodeStats{NodeName: node, StartTime: metav1.NewTime(n.Start), CPU: cpuStats(n.CPU, n.Time), Memory: memoryStats(n.Memory, n.Time)},
		Pods: []stats.PodStats{},
	}
	if !brief {
		out.Node.Network = networkStats(n.Network, n.Time)
		out.Node.Fs = fsStats(n.FS, n.Time)
		out.Node.Runtime = &stats.RuntimeStats{ImageFs: fsStats(n.ImageFS, n.Time), ContainerFs: fsStats(n.ImageFS, n.Time)}
		pids, most := int64(n.PIDs), int64(n.MaxPIDs)
		out.Node.Rlimit = &stats.RlimitStats{Time: at, MaxPID: &most, NumOfRunningProcesses: &pids}
	}
	for i := range report.Pods {
		out.Pods = append(out.Pods, podStats(&report.Pods[i], report, brief))
	}
	return out
}

func podStats(p *usage.Pod, report *usage.Report, brief bool) stats.PodStats {
	out := stats.PodStats{
		PodRef:     stats.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)},
		StartTime:  metav1.NewTime(p.Start),
		Containers: []stats.ContainerStats{},
		CPU:        cpuStats(p.CPU, report.Time),
		Memory:     memoryStats(p.Memory, report.Time),
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		one := stats.ContainerStats{Name: c.Name, StartTime: metav1.NewTime(c.Start), CPU: cpuStats(c.CPU, report.Time), Memory: memoryStats(c.Memory, report.Time)}
		if !brief {
			one.Rootfs, one.Logs = fsStats(c.Rootfs, report.Time), fsStats(c.Logs, report.Time)
		}
		out.Containers = append(out.Containers, one)
	}
	if brief {
		return out
	}
	out.Network = networkStats(p.Network, report.Time)
	out.EphemeralStorage = fsStats(p.Ephemeral, report.Time)
	out.ProcessStats = &stats.ProcessStats{ProcessCount: &p.PIDs}
	for _, v := range p.Volumes {
		one := stats.VolumeStats{FsStats: *fsStats(v.FS, report.Time), Name: v.Name}
		if v.Claim != "" {
			one.PVCRef = &stats.PVCReference{Name: v.Claim, Namespace: p.Namespace}
		}
		out.VolumeStats = append(out.VolumeStats, one)
	}
	return out
}

func cpuStats(c usage.CPU, at time.Time) *stats.CPUStats {
	used := uint64(c.Used)
	out := &stats.CPUStats{Time: metav1.NewTime(at), UsageCoreNanoSeconds: &used}
	if c.Window > 0 {
		rate := c.NanoCores
		out.UsageNanoCores = &rate
	}
	return out
}

func memoryStats(m usage.Memory, at time.Time) *stats.MemoryStats {
	out := &stats.MemoryStats{
		Time: metav1.NewTime(at), UsageBytes: &m.Usage, WorkingSetBytes: &m.WorkingSet, RSSBytes: &m.RSS,
		PageFaults: &m.PageFaults, MajorPageFaults: &m.MajorPageFaults,
	}
	if m.Limit > 0 {
		out.AvailableBytes = &m.Available
	}
	return out
}

func fsStats(f usage.FS, at time.Time) *stats.FsStats {
	return &stats.FsStats{
		Time: metav1.NewTime(at), AvailableBytes: &f.Available, CapacityBytes: &f.Capacity, UsedBytes: &f.Used,
		InodesFree: &f.InodesFree, Inodes: &f.Inodes, InodesUsed: &f.InodesUsed,
	}
}

// networkStats returns nil if there are no interfaces.
func networkStats(n usage.Network, at time.Time) *stats.NetworkStats {
	if len(n.Interfaces) == 0 {
		return nil
	}
	out := &stats.NetworkStats{Time: metav1.NewTime(at)}
	for _, i := range n.Interfaces {
		one := stats.InterfaceStats{Name: i.Name, RxBytes: &i.RxBytes, RxErrors: &i.RxErrors, TxBytes: &i.TxBytes, TxErrors: &i.TxErrors}
		if i.Name == n.Default {
			out.InterfaceStats = one
		}
		out.Interfaces = append(out.Interfaces, one)
	}
	return out
}
