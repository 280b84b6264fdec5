// Package metrics contains the kinds of the group metrics.k8s.io, whose objects are computed when
// they are read, from what the nodes measure.
//
// Its rows have no rules: nothing is ever written.
package metrics

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		NodeMetrics(),
		PodMetrics(),
	}
}

// NodeMetrics returns the row of the usage of nodes. The resource has the name of the nodes
// themselves, as with metrics-server.
func NodeMetrics() *resource.Kind {
	k := row.Computed[metricsv1beta1.NodeMetrics, metricsv1beta1.NodeMetricsList](metricsv1beta1.SchemeGroupVersion, "nodes", false)
	k.Columns = columns()
	k.Cells = func(o resource.Object) []any {
		n := o.(*metricsv1beta1.NodeMetrics)
		return cells(n.Usage, n.Window)
	}
	return k
}

// PodMetrics returns the row of the usage of pods.
func PodMetrics() *resource.Kind {
	k := row.Computed[metricsv1beta1.PodMetrics, metricsv1beta1.PodMetricsList](metricsv1beta1.SchemeGroupVersion, "pods", true)
	k.Columns = columns()
	k.Cells = func(o resource.Object) []any {
		p := o.(*metricsv1beta1.PodMetrics)
		total := corev1.ResourceList{}
		for _, c := range p.Containers {
			for name, q := range c.Usage {
				sum := total[name]
				sum.Add(q)
				total[name] = sum
			}
		}
		return cells(total, p.Window)
	}
	return k
}

// columns are those of metrics-server.
func columns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		{Name: "cpu", Type: "string", Format: "quantity"},
		{Name: "memory", Type: "string", Format: "quantity"},
		{Name: "Window", Type: "string", Format: "duration"},
	}
}

func cells(usage corev1.ResourceList, window metav1.Duration) []any {
	return []any{usage.Cpu().String(), usage.Memory().String(), window.Duration.String()}
}
