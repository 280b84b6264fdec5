package why

import (
	"fmt"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

// autoscaler explains why a HorizontalPodAutoscaler does not change the number of replicas, or
// what it does.
func (w *World) autoscaler(h *autoscalingv2.HorizontalPodAutoscaler) *Answer {
	ref := refOf("HorizontalPodAutoscaler", h)
	able, active, limited := scaling(h, autoscalingv2.AbleToScale), scaling(h, autoscalingv2.ScalingActive), scaling(h, autoscalingv2.ScalingLimited)
	if able == nil || h.Status.ObservedGeneration != nil && *h.Status.ObservedGeneration < h.Generation {
		a := problem(ControllerBehind, "the autoscaler controller has not processed it yet")
		a.next("wait 15 s; then see that a controller-manager leads: keel status")
		return a
	}
	target := h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name
	switch {
	case able.Status == corev1.ConditionFalse && able.Reason == "FailedGetScale":
		a := problem(TargetMissing, "what it scales, %s, cannot be read", strings.ToLower(target))
		a.condition(ref, able)
		a.next("create it, or correct spec.scaleTargetRef: kubectl edit%s hpa/%s", namespaced(h.Namespace), h.Name)
		return a
	case able.Status == corev1.ConditionFalse:
		a := problem(ScaleRefused, "%s refuses the number of replicas", strings.ToLower(target))
		a.condition(ref, able)
		w.seen(a, ref, h.UID, "FailedRescale")
		return a
	case active != nil && active.Status == corev1.ConditionFalse:
		return w.inactive(h, ref, active)
	}
	if b := w.scaled(h); b != nil && !b.Healthy {
		a := problem(TargetHoldsUp, "it asks for %s, which %s does not have", plural(int(h.Status.DesiredReplicas), "replica", "replicas"), strings.ToLower(target))
		a.usage(ref, h)
		a.Because = b
		return a
	}
	if limited != nil && limited.Status == corev1.ConditionTrue && limited.Reason == "TooManyReplicas" {
		a := problem(AtMaximum, "its metrics ask for more than %s", plural(int(h.Spec.MaxReplicas), "replica", "replicas"))
		a.usage(ref, h)
		a.spec(ref, "maxReplicas: %d", h.Spec.MaxReplicas)
		a.next("raise spec.maxReplicas, or the requests of the pods if they are too small")
		return a
	}
	a := healthy("it wants %s, and there are %d", plural(int(h.Status.DesiredReplicas), "replica", "replicas"), h.Status.CurrentReplicas)
	if h.Status.DesiredReplicas != h.Status.CurrentReplicas {
		a.Code = Progressing
	}
	a.usage(ref, h)
	for _, c := range []*autoscalingv2.HorizontalPodAutoscalerCondition{able, limited} {
		if c != nil && (strings.HasSuffix(c.Reason, "Stabilized") || strings.HasSuffix(c.Reason, "Limit")) {
			a.condition(ref, c) // why it does not go further yet
		}
	}
	return a
}

// inactive explains why an autoscaler computes no number of replicas.
func (w *World) inactive(h *autoscalingv2.HorizontalPodAutoscaler, ref Ref, active *autoscalingv2.HorizontalPodAutoscalerCondition) *Answer {
	var a *Answer
	edit := fmt.Sprintf("kubectl edit%s %s/%s", namespaced(h.Namespace), strings.ToLower(h.Spec.ScaleTargetRef.Kind), h.Spec.ScaleTargetRef.Name)
	switch {
	case active.Reason == "ScalingDisabled":
		a = problem(ScaledToZero, "its target was scaled to 0 replicas by hand, which switches it off")
		a.next("kubectl scale%s %s/%s --replicas=%d", namespaced(h.Namespace), strings.ToLower(h.Spec.ScaleTargetRef.Kind), h.Spec.ScaleTargetRef.Name, max(orOne(h.Spec.MinReplicas), 1))
	case active.Reason == "AmbiguousSelector":
		a = problem(SharedTarget, "another autoscaler scales the same pods, so neither does")
		a.next("delete one of them: kubectl get%s hpa", namespaced(h.Namespace))
	case active.Reason == "InvalidSelector":
		a = problem(NoSelector, "its target selects no pods")
		a.next("give it a selector: %s", edit)
	case strings.Contains(active.Message, "missing request for") || strings.Contains(active.Message, "missing pod-level request"):
		a = problem(RequestMissing, "a percentage of a request is its target, and a container has no request")
		a.next("set resources.requests of the container that the condition names: %s", edit)
	case strings.Contains(active.Message, "not found in Pod"):
		a = problem(MetricMissing, "it names a container that its pods do not have")
		a.next("kubectl edit%s hpa/%s", namespaced(h.Namespace), h.Name)
	case strings.Contains(active.Message, "custom metrics API") || strings.Contains(active.Message, "external metrics API"):
		a = problem(MetricsAPIMissing, "nothing serves the API of one of its metrics")
		a.next("use a metric of type Resource or ContainerResource")
	default:
		a = problem(MetricMissing, "the usage of its target's pods is not known")
		a.next("kubectl top%s pod", namespaced(h.Namespace))
		if b := w.scaled(h); b != nil && !b.Healthy {
			a.Because = b
		}
	}
	a.condition(ref, active)
	return a
}

// scaled explains the target of an autoscaler; nil if it is not in the World.
func (w *World) scaled(h *autoscalingv2.HorizontalPodAutoscaler) *Answer {
	a, err := w.Explain(Ref{Kind: h.Spec.ScaleTargetRef.Kind, Namespace: h.Namespace, Name: h.Spec.ScaleTargetRef.Name})
	if err != nil {
		return nil
	}
	return a
}

func scaling(h *autoscalingv2.HorizontalPodAutoscaler, kind autoscalingv2.HorizontalPodAutoscalerConditionType) *autoscalingv2.HorizontalPodAutoscalerCondition {
	for i := range h.Status.Conditions {
		if h.Status.Conditions[i].Type == kind {
			return &h.Status.Conditions[i]
		}
	}
	return nil
}

// condition adds a condition to the evidence.
func (a *Answer) condition(ref Ref, c *autoscalingv2.HorizontalPodAutoscalerCondition) {
	a.status(ref, "%s=%s: %s: %s", c.Type, c.Status, c.Reason, c.Message)
}

// usage adds the present values of the metrics, with their targets, to the evidence.
func (a *Answer) usage(ref Ref, h *autoscalingv2.HorizontalPodAutoscaler) {
	for i := range h.Status.CurrentMetrics {
		m := &h.Status.CurrentMetrics[i]
		if i >= len(h.Spec.Metrics) || h.Spec.Metrics[i].Type != m.Type {
			continue
		}
		spec := &h.Spec.Metrics[i]
		switch {
		case m.Resource != nil:
			a.measured(ref, string(m.Resource.Name), m.Resource.Current, spec.Resource.Target)
		case m.ContainerResource != nil:
			a.measured(ref, string(m.ContainerResource.Name)+" of container "+m.ContainerResource.Container, m.ContainerResource.Current, spec.ContainerResource.Target)
		case m.Pods != nil:
			a.measured(ref, m.Pods.Metric.Name, m.Pods.Current, spec.Pods.Target)
		case m.Object != nil:
			a.measured(ref, m.Object.Metric.Name, m.Object.Current, spec.Object.Target)
		case m.External != nil:
			a.measured(ref, m.External.Metric.Name, m.External.Current, spec.External.Target)
		}
	}
}

func (a *Answer) measured(ref Ref, name string, now autoscalingv2.MetricValueStatus, target autoscalingv2.MetricTarget) {
	switch {
	case now.AverageUtilization != nil && target.AverageUtilization != nil:
		a.status(ref, "%s: %d%% of the requests, the target is %d%%", name, *now.AverageUtilization, *target.AverageUtilization)
	case now.AverageValue != nil && target.AverageValue != nil:
		a.status(ref, "%s: %s on average, the target is %s", name, now.AverageValue, target.AverageValue)
	case now.Value != nil && target.Value != nil:
		a.status(ref, "%s: %s, the target is %s", name, now.Value, target.Value)
	}
}
