package eviction

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Reason is the reason of pods that are evicted or refused, in their status and events.
const Reason = "Evicted"

// Annotations of the event about an evicted pod. They are the kubelet's.
const (
	annotationStarved         = "starved_resource"
	annotationContainers      = "offending_containers"
	annotationContainersUsage = "offending_containers_usage"
)

// message returns why a pod is evicted for a threshold, and the annotations of the event. It
// is worded as the kubelet's.
func message(c Candidate, t *Threshold, left Observation) (string, map[string]string) {
	name := t.Signal.Resource()
	threshold := t.Value.Of(left.Capacity)
	format := resource.BinarySI
	if name == resourceInodes || name == resourcePIDs {
		format = resource.DecimalSI
	}
	var text strings.Builder
	fmt.Fprintf(&text, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", name, threshold.String(), resource.NewQuantity(left.Available, format))
	annotations := map[string]string{annotationStarved: string(name)}
	if c.Use == nil {
		return text.String(), annotations
	}
	if pr := c.Pod.Spec.Resources; pr != nil && name == corev1.ResourceMemory {
		if request, ok := pr.Requests[name]; ok {
			fmt.Fprintf(&text, "Pod %s was using %s, request is %s, has larger consumption of %s. ", c.Pod.Name, binary(c.Use.Memory), request.String(), name)
		}
	}
	var containers, usage []string
	for _, u := range c.Use.Containers {
		var used int64
		switch name {
		case corev1.ResourceMemory:
			used = u.Memory
		case corev1.ResourceEphemeralStorage:
			used = u.Root.Bytes + u.Logs.Bytes
		}
		request := requestOf(c.Pod, u.Name, name)
		if used <= request.Value() {
			continue
		}
		fmt.Fprintf(&text, "Container %s was using %s, request is %s, has larger consumption of %s. ", u.Name, binary(used), request.String(), name)
		containers, usage = append(containers, u.Name), append(usage, binary(used))
	}
	annotations[annotationContainers] = strings.Join(containers, ",")
	annotations[annotationContainersUsage] = strings.Join(usage, ",")
	return text.String(), annotations
}

func binary(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }

func requestOf(p *corev1.Pod, container string, name corev1.ResourceName) resource.Quantity {
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		if c.Name == container {
			return c.Resources.Requests[name]
		}
	}
	return resource.Quantity{}
}
