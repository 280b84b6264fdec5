package podautoscaler

import (
	"fmt"
	"slices"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Observation is everything that a decision depends on.
type Observation struct {
	HPA *autoscalingv2.HorizontalPodAutoscaler
	// Scale is the target's scale, and ScaleErr why it could not be read.
	Scale    *autoscalingv1.Scale
	ScaleErr error
	// Target is what the scale selects. It is read only if Needed returns true.
	Target Target
	// History is what was recommended and done before.
	History History
	Now     time.Time
	Options Options
}

// Event is an event to record.
type Event struct {
	Warning         bool
	Reason, Message string
}

// Decision is what to do about an autoscaler.
type Decision struct {
	// Rescale says whether the target's scale is set to Replicas, and Reason why.
	Rescale  bool
	Replicas int32
	Reason   string
	// Status is the new status, History the new history, and Events are to be recorded. They
	// are final if there is nothing to rescale; see Rescaled.
	Status  autoscalingv2.HorizontalPodAutoscalerStatus
	History History
	Events  []Event
	// Err says which metrics could not be computed.
	Err error

	current int32
	hpa     *autoscalingv2.HorizontalPodAutoscaler
}

// minReplicas returns spec.minReplicas or its default.
func minReplicas(hpa *autoscalingv2.HorizontalPodAutoscaler) int32 {
	if hpa.Spec.MinReplicas == nil {
		return 1
	}
	return *hpa.Spec.MinReplicas
}

// Needed reports whether the number of replicas follows from metrics, and not from the
// target's own number alone.
func Needed(hpa *autoscalingv2.HorizontalPodAutoscaler, current int32) bool {
	if current == 0 {
		// Zero replicas mean that scaling is off, unless the autoscaler itself scaled to zero
		// (KEP-2021).
		return wasScaledToZero(hpa) && (minReplicas(hpa) != 0 || scalesFromZero(hpa))
	}
	return current <= hpa.Spec.MaxReplicas && current >= minReplicas(hpa)
}

// wasScaledToZero reports whether the autoscaler scaled its target to zero.
func wasScaledToZero(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
	return slices.ContainsFunc(hpa.Status.Conditions, func(c autoscalingv2.HorizontalPodAutoscalerCondition) bool {
		return c.Type == autoscalingv2.ScaledToZero && c.Status == corev1.ConditionTrue
	})
}

// scalesFromZero reports whether there is a metric that has a value without pods.
func scalesFromZero(hpa *autoscalingv2.HorizontalPodAutoscaler) bool {
	return slices.ContainsFunc(hpa.Spec.Metrics, func(m autoscalingv2.MetricSpec) bool {
		return m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	})
}

// planner makes one decision.
type planner struct {
	Observation
	d Decision
}

// Plan decides about an autoscaler. It is a pure function.
func Plan(o Observation) Decision {
	p := &planner{Observation: o, d: Decision{hpa: o.HPA, History: o.History.clone()}}
	o.HPA.Status.DeepCopyInto(&p.d.Status)
	if o.ScaleErr != nil {
		p.warn("FailedGetScale", o.ScaleErr.Error())
		p.condition(autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedGetScale", fmt.Sprintf("the HPA controller was unable to get the target's current scale: %v", o.ScaleErr))
		p.d.Err = o.ScaleErr
		return p.d
	}
	p.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededGetScale", "the HPA controller was able to get the target's current scale")
	p.d.current = o.Scale.Spec.Replicas
	p.d.History.begin(p.d.current, o.Now)
	var metrics []autoscalingv2.MetricStatus
	switch low, high := minReplicas(o.HPA), o.HPA.Spec.MaxReplicas; {
	case Needed(o.HPA, p.d.current):
		var ok bool
		if metrics, ok = p.fromMetrics(); !ok {
			p.status(p.d.Status.DesiredReplicas, metrics)
			return p.d
		}
	case p.d.current == 0:
		p.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
		p.d.Replicas = 0
	case p.d.current > high:
		p.d.Replicas, p.d.Reason = high, "Current number of replicas above Spec.MaxReplicas"
	case p.d.current < low:
		p.d.Replicas, p.d.Reason = low, "Current number of replicas below Spec.MinReplicas"
	}
	p.d.Rescale = p.d.Replicas != p.d.current
	p.status(p.d.Replicas, metrics)
	return p.d
}

// fromMetrics sets the number of replicas that the metrics demand, within all limits. It
// returns false if there is no such number.
func (p *planner) fromMetrics() ([]autoscalingv2.MetricStatus, bool) {
	wanted, metric, statuses, err := p.propose()
	p.d.Err = err
	if err != nil && wanted < 0 {
		p.warn("FailedComputeMetricsReplicas", err.Error())
		return statuses, false
	}
	switch {
	case wanted > p.d.current:
		p.d.Reason = metric + " above target"
	case wanted < p.d.current:
		p.d.Reason = "All metrics below target"
	}
	p.d.Replicas = p.limit(max(wanted, 0))
	if low := minReplicas(p.HPA); p.d.current == 0 && p.d.Replicas < low {
		p.d.Replicas = low
		if p.d.Reason == "" {
			p.d.Reason = "Current number of replicas below Spec.MinReplicas"
		}
	}
	return statuses, true
}

// status sets the numbers and metrics of the status.
func (p *planner) status(desired int32, metrics []autoscalingv2.MetricStatus) {
	generation := p.HPA.Generation
	s := &p.d.Status
	s.ObservedGeneration = &generation
	s.CurrentReplicas, s.DesiredReplicas, s.CurrentMetrics = p.d.current, desired, metrics
}

// warn adds a warning.
func (p *planner) warn(reason, message string) {
	p.d.Events = append(p.d.Events, Event{Warning: true, Reason: reason, Message: message})
}

func (p *planner) condition(kind autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, message string) {
	p.d.condition(p.Now, kind, status, reason, message)
}

// condition sets a condition of the status.
func (d *Decision) condition(now time.Time, kind autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, message string) {
	list := d.Status.Conditions
	i := slices.IndexFunc(list, func(c autoscalingv2.HorizontalPodAutoscalerCondition) bool { return c.Type == kind })
	if i < 0 {
		i = len(list)
		list = append(list, autoscalingv2.HorizontalPodAutoscalerCondition{Type: kind})
	}
	c := &list[i]
	if c.Status != status {
		c.LastTransitionTime = metav1.NewTime(now)
	}
	c.Status, c.Reason, c.Message = status, reason, message
	d.Status.Conditions = list
}

// Rescaled completes a decision after the target's scale was set, or could not be set.
func (d *Decision) Rescaled(err error, now time.Time) {
	if err != nil {
		d.Events = append(d.Events, Event{Warning: true, Reason: "FailedRescale", Message: fmt.Sprintf("New size: %d; reason: %s; error: %v", d.Replicas, d.Reason, err)})
		d.condition(now, autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedUpdateScale", fmt.Sprintf("the HPA controller was unable to update the target scale: %v", err))
		d.Status.DesiredReplicas = d.hpa.Status.DesiredReplicas
		return
	}
	d.condition(now, autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededRescale", fmt.Sprintf("the HPA controller was able to update the target scale to %d", d.Replicas))
	d.Events = append(d.Events, Event{Reason: "SuccessfulRescale", Message: fmt.Sprintf("New size: %d; reason: %s", d.Replicas, d.Reason)})
	d.History.rescaled(d.hpa.Spec.Behavior, d.current, d.Replicas, now)
	if d.current > 0 && d.Replicas == 0 && minReplicas(d.hpa) == 0 && scalesFromZero(d.hpa) {
		d.condition(now, autoscalingv2.ScaledToZero, corev1.ConditionTrue, "ScaledToZero", "the HPA controller scaled the workload to zero")
	} else {
		d.condition(now, autoscalingv2.ScaledToZero, corev1.ConditionFalse, "NotScaledToZero", "the HPA controller did not scale the workload to zero")
	}
	at := metav1.NewTime(now)
	d.Status.LastScaleTime = &at
}
