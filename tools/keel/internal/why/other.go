package why

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func (w *World) claim(c *corev1.PersistentVolumeClaim) *Answer {
	ref := refOf("PersistentVolumeClaim", c)
	switch c.Status.Phase {
	case corev1.ClaimBound:
		if find(w.Volumes, Ref{Name: c.Spec.VolumeName}) == nil && !w.Hidden["PersistentVolume"] {
			a := problem(VolumeLost, "its volume %s no longer exists", c.Spec.VolumeName)
			a.next("restore the volume from a backup; a new claim starts empty")
			return a
		}
		return healthy("it is bound to volume %s", c.Spec.VolumeName)
	case corev1.ClaimLost:
		a := problem(VolumeLost, "its volume %s is lost", c.Spec.VolumeName)
		w.seen(a, ref, c.UID)
		return a
	}
	class := c.Spec.StorageClassName
	switch {
	case c.Spec.VolumeName != "":
		a := problem(ClaimNotBound, "the volume %s that it names does not exist or does not match it", c.Spec.VolumeName)
		w.seen(a, ref, c.UID)
		return a
	case class == nil && w.DefaultClass == "" && !w.Hidden["StorageClass"]:
		a := problem(NoClass, "it names no storage class, and there is no default class")
		a.next("set spec.storageClassName, or annotate a class: storageclass.kubernetes.io/is-default-class=true")
		return a
	case class != nil && *class != "" && !w.Hidden["StorageClass"] && !slices.Contains(w.Classes, *class):
		a := problem(ClassMissing, "its storage class %s does not exist", *class)
		a.spec(ref, "storageClassName: %s; there are: %s", *class, strings.Join(w.Classes, ", "))
		a.next("create the class, or name one that exists (in a new claim)")
		return a
	}
	if len(w.events(c.UID, "ProvisioningFailed")) > 0 {
		a := problem(ProvisionFails, "no volume could be provisioned for it")
		w.seen(a, ref, c.UID, "ProvisioningFailed")
		return a
	}
	if len(w.events(c.UID, "WaitForFirstConsumer", "WaitForPodScheduled")) > 0 {
		a := problem(WaitsForConsumer, "it gets a volume when a pod that mounts it is scheduled")
		w.seen(a, ref, c.UID, "WaitForFirstConsumer", "WaitForPodScheduled")
		for _, p := range w.Pods {
			if p.Namespace != c.Namespace || !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
				return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == c.Name
			}) {
				continue
			}
			if b := w.pod(p); !b.Healthy {
				b.Object = refOf("Pod", p)
				a.Because = b
			}
			return a
		}
		a.next("start a pod that mounts it")
		return a
	}
	a := problem(ClaimNotBound, "no volume matches it, and none has been provisioned for it yet")
	w.seen(a, ref, c.UID)
	return a
}

func (w *World) service(s *corev1.Service) *Answer {
	ref := refOf("Service", s)
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return healthy("it is an alias of %s", s.Spec.ExternalName)
	}
	var ready, waiting int
	for _, slice := range w.Slices {
		if slice.Namespace != s.Namespace || slice.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				ready++
			} else {
				waiting++
			}
		}
	}
	if ready > 0 {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) == 0 {
			a := problem(NoLoadBalancer, "it has no load balancer address yet; it works inside the cluster")
			w.seen(a, ref, s.UID)
			a.next("check that a cloud-controller leads: keel status")
			return a
		}
		return healthy("%s it", plural(ready, "endpoint serves", "endpoints serve"))
	}
	if len(s.Spec.Selector) == 0 {
		a := problem(NoSelector, "it has no selector and no endpoints")
		a.next("set spec.selector, or create an EndpointSlice labelled %s=%s", discoveryv1.LabelServiceName, s.Name)
		return a
	}
	pods := w.selected(s.Namespace, s.Spec.Selector)
	if len(pods) == 0 {
		a := problem(SelectsNothing, "its selector matches no pod in its namespace")
		a.spec(ref, "selector: %s", selectorText(s.Spec.Selector))
		for _, p := range w.Pods {
			if p.Namespace == s.Namespace && shares(p.Labels, s.Spec.Selector) {
				a.spec(refOf("Pod", p), "labels: %s", selectorText(p.Labels))
				break
			}
		}
		a.next("correct the selector, or the labels of the pod template")
		return a
	}
	if b := w.worst(pods); b != nil {
		a := problem(NoReadyEndpoints, "%s", plural(len(pods), "pod is selected, and it is not ready", "pods are selected, and none is ready"))
		a.Because = b
		return a
	}
	for _, port := range s.Spec.Ports {
		if port.TargetPort.Type == intstr.String && !anyPort(pods, port.TargetPort.StrVal) {
			a := problem(PortMismatch, "no container port of its pods has the name of its targetPort %q", port.TargetPort.StrVal)
			a.spec(ref, "port %d: targetPort: %s", port.Port, port.TargetPort.StrVal)
			a.next("give a containerPort this name, or use a port number")
			return a
		}
	}
	a := problem(NoReadyEndpoints, "%s in its endpoints yet", plural(len(pods), "pod is selected, and it is not", "pods are selected, and none is"))
	a.status(ref, "%s", plural(waiting, "endpoint is not ready", "endpoints are not ready"))
	return a
}

func selectorText(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// shares reports whether labels contains a key of the selector, with any value.
func shares(labels, selector map[string]string) bool {
	for k := range selector {
		if _, ok := labels[k]; ok {
			return true
		}
	}
	return false
}

func anyPort(pods []*corev1.Pod, name string) bool {
	return slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
		return slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool {
			return slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == name })
		})
	})
}

func nodeCondition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

func nodeReady(n *corev1.Node) bool {
	c := nodeCondition(n, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

func (w *World) node(n *corev1.Node) *Answer {
	ref := refOf("Node", n)
	c := nodeCondition(n, corev1.NodeReady)
	switch {
	case c == nil:
		a := problem(NodeSilent, "it has never reported its status")
		a.next("start the node's process, or delete the Node")
		return a
	case c.Status == corev1.ConditionUnknown:
		a := problem(NodeSilent, "it has not reported its status for %s", w.ago(c.LastHeartbeatTime))
		a.status(ref, "Ready is Unknown since %s: %s", w.ago(c.LastTransitionTime), c.Message)
		w.seen(a, ref, n.UID, "NodeNotReady")
		a.next("check the machine, its network and the node's process: keel status")
		return a
	case c.Status != corev1.ConditionTrue:
		a := problem(NodeNotReady, "it reports that it is not ready: %s", c.Message)
		a.status(ref, "Ready is %s since %s: %s: %s", c.Status, w.ago(c.LastTransitionTime), c.Reason, c.Message)
		w.seen(a, ref, n.UID)
		return a
	}
	for _, t := range pressures {
		if p := nodeCondition(n, t); p != nil && p.Status == corev1.ConditionTrue {
			a := problem(NodePressure, "it is ready, but short of a resource: %s", p.Message)
			a.status(ref, "%s is True since %s: %s", p.Type, w.ago(p.LastTransitionTime), p.Message)
			w.seen(a, ref, types.UID(n.Name), "EvictionThresholdMet") // the node's own events have its name as UID
			a.next("find out what uses it: kubectl describe node %s", n.Name)
			return a
		}
	}
	if n.Spec.Unschedulable {
		a := problem(Cordoned, "it is ready, but cordoned: it accepts no new pods")
		a.spec(ref, "unschedulable: true")
		a.next("kubectl uncordon %s", n.Name)
		return a
	}
	a := healthy("it is ready")
	for _, t := range n.Spec.Taints {
		a.spec(ref, "%s", fmt.Sprintf("taint %s", t.ToString()))
	}
	return a
}
