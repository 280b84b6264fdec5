package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/resource"
)

func serviceColumns() []metav1.TableColumnDefinition {
	spec := corev1.ServiceSpec{}
	return []metav1.TableColumnDefinition{
		column.Text("Type", column.Doc(spec, "type")),
		column.Text("Cluster-IP", column.Doc(spec, "clusterIP")),
		column.Text("External-IP", column.Doc(spec, "externalIPs")),
		column.Text("Port(s)", column.Doc(spec, "ports")),
		column.AgeColumn(),
		column.Wide("Selector", column.Doc(spec, "selector")),
	}
}

func serviceCells(o resource.Object) []any {
	s := o.(*corev1.Service)
	ip := column.None
	if len(s.Spec.ClusterIPs) > 0 {
		ip = s.Spec.ClusterIPs[0]
	}
	return []any{
		string(s.Spec.Type), ip, externalIP(s), servicePorts(s.Spec.Ports), column.Age(s.CreationTimestamp),
		column.Pairs(s.Spec.Selector),
	}
}

func externalIP(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return column.List(s.Spec.ExternalIPs)
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var all []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				all = append(all, in.IP)
			} else if in.Hostname != "" {
				all = append(all, in.Hostname)
			}
		}
		all = append(all, s.Spec.ExternalIPs...)
		return column.Or(strings.Join(all, ","), "<pending>")
	}
	return column.Unknown
}

func servicePorts(ports []corev1.ServicePort) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		if p.NodePort > 0 {
			texts[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		} else {
			texts[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		}
	}
	return column.List(texts)
}
