package usage

import (
	"time"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

// Message returns what the metrics API needs of a measurement. Pods without a running
// container are left out.
func (r *Report) Message() *nodev1.Usage {
	out := &nodev1.Usage{Node: measurement(r.Node.Time, r.Node.CPU, r.Node.Memory)}
	for i := range r.Pods {
		p := &r.Pods[i]
		if len(p.Containers) == 0 {
			continue
		}
		one := &nodev1.PodUsage{Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID)}
		for j := range p.Containers {
			c := &p.Containers[j]
			one.Containers = append(one.Containers, &nodev1.ContainerUsage{Name: c.Name, Usage: measurement(r.Time, c.CPU, c.Memory)})
		}
		out.Pods = append(out.Pods, one)
	}
	return out
}

func measurement(at time.Time, c CPU, m Memory) *nodev1.Measurement {
	return &nodev1.Measurement{TimeUnixNano: at.UnixNano(), WindowNano: int64(c.Window), CpuNanoCores: c.NanoCores, MemoryBytes: m.WorkingSet}
}
