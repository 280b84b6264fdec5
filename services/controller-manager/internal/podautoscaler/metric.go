package podautoscaler

import (
	"errors"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Target is what an autoscaler's target selects, and what that uses.
type Target struct {
	// Err says why there is no selector, or why the pods could not be listed. Its condition is
	// ScalingActive with Reason and Message; the reason of its event is Event, "" for none.
	Err                    error
	Event, Reason, Message string
	// Pods are the selected pods, and Usage is that of those that have one. UsageErr says why
	// usage could not be read.
	Pods     []*corev1.Pod
	Usage    []*metricsv1beta1.PodMetrics
	UsageErr error
	// Values are the values of the metrics of other types, by their index in the spec.
	Values map[int]Value
}

// Value is the value of a metric that is not a resource, in thousandths.
type Value struct {
	// Amount is the value of an object's metric or the sum of an external metric's.
	Amount int64
	// Pods is a metric of pods, by the pod's name.
	Pods map[string]int64
	Err  error
}

// sample is what a pod uses, in thousandths of a core, a byte or whatever is measured.
type sample struct {
	value  int64
	at     time.Time
	window time.Duration
}

// propose returns the largest number of replicas that a metric demands, that metric's name,
// and the status of all metrics. wanted is -1 if no number is safe: no metric is known, or one
// of several is not and the others would scale down.
func (p *planner) propose() (wanted int32, metric string, statuses []autoscalingv2.MetricStatus, err error) {
	if p.Target.Err != nil {
		if p.Target.Event != "" {
			p.warn(p.Target.Event, p.Target.Err.Error())
		}
		if p.Target.Reason != "" {
			p.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, p.Target.Reason, p.Target.Message)
		}
		return -1, "", nil, p.Target.Err
	}
	specs := p.HPA.Spec.Metrics
	statuses = make([]autoscalingv2.MetricStatus, len(specs))
	var failed []failure
	for i := range specs {
		n, name, err := p.metric(i, &specs[i], &statuses[i])
		if err != nil {
			f := explain(&specs[i], err)
			p.warn(f.reason, f.cause.Error())
			failed = append(failed, f)
			continue
		}
		if wanted == 0 || n > wanted {
			wanted, metric = n, name
		}
	}
	if len(failed) > 0 {
		err = fmt.Errorf("invalid metrics (%d invalid out of %d), first error is: %w", len(failed), len(specs), failed[0].err)
		if len(failed) == len(specs) || wanted < p.Scale.Spec.Replicas {
			p.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, failed[0].reason, fmt.Sprintf("the HPA was unable to compute the replica count: %v", failed[0].cause))
			return -1, "", statuses, err
		}
	}
	p.condition(autoscalingv2.ScalingActive, corev1.ConditionTrue, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from "+metric)
	return wanted, metric, statuses, err
}

// failure is a metric from which nothing could be computed. cause is what the event and the
// condition say, err what the autoscaler as a whole says.
type failure struct {
	reason     string
	cause, err error
}

// explain adds Kubernetes' words about a metric to an error.
func explain(m *autoscalingv2.MetricSpec, err error) failure {
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		return failure{"FailedGetResourceMetric", err, fmt.Errorf("failed to get %s resource metric value: %w", m.Resource.Name, err)}
	case autoscalingv2.ContainerResourceMetricSourceType:
		return failure{"FailedGetContainerResourceMetric", err, fmt.Errorf("failed to get %s container metric value: %w", m.ContainerResource.Container, err)}
	case autoscalingv2.PodsMetricSourceType:
		return failure{"FailedGetPodsMetric", err, fmt.Errorf("failed to get pods metric value: %w", err)}
	case autoscalingv2.ObjectMetricSourceType:
		return failure{"FailedGetObjectMetric", err, fmt.Errorf("failed to get object metric value: %w", err)}
	case autoscalingv2.ExternalMetricSourceType:
		return failure{"FailedGetExternalMetric", err, fmt.Errorf("failed to get %s external metric value: %w", m.External.Metric.Name, err)}
	}
	return failure{"InvalidMetricSourceType", err, err}
}

// metric returns the number of replicas that one metric demands and the metric's name.
func (p *planner) metric(i int, m *autoscalingv2.MetricSpec, status *autoscalingv2.MetricStatus) (int32, string, error) {
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		n, current, name, err := p.resource(m.Resource.Name, "", &m.Resource.Target)
		if err == nil {
			*status = autoscalingv2.MetricStatus{Type: m.Type, Resource: &autoscalingv2.ResourceMetricStatus{Name: m.Resource.Name, Current: current}}
		}
		return n, name, err
	case autoscalingv2.ContainerResourceMetricSourceType:
		c := m.ContainerResource
		n, current, name, err := p.resource(c.Name, c.Container, &c.Target)
		if err == nil {
			*status = autoscalingv2.MetricStatus{Type: m.Type, ContainerResource: &autoscalingv2.ContainerResourceMetricStatus{Name: c.Name, Container: c.Container, Current: current}}
		}
		return n, name, err
	case autoscalingv2.PodsMetricSourceType:
		n, current, err := p.podsMetric(p.Target.Values[i], m.Pods)
		if err == nil {
			*status = autoscalingv2.MetricStatus{Type: m.Type, Pods: &autoscalingv2.PodsMetricStatus{Metric: m.Pods.Metric, Current: current}}
		}
		return n, "pods metric " + m.Pods.Metric.Name, err
	case autoscalingv2.ObjectMetricSourceType:
		v := p.Target.Values[i]
		if v.Err != nil {
			o := m.Object.DescribedObject
			err := fmt.Errorf("unable to get metric %s on %s %s/%s: %w", m.Object.Metric.Name, o.Kind, p.HPA.Namespace, o.Name, v.Err)
			if m.Object.Target.Type == autoscalingv2.AverageValueMetricType {
				err = fmt.Errorf("failed to get %s object metric: %w", m.Object.Metric.Name, err)
			}
			return 0, "", err
		}
		name := fmt.Sprintf("%s metric %s", m.Object.DescribedObject.Kind, m.Object.Metric.Name)
		if m.Object.Target.Type == autoscalingv2.AverageValueMetricType {
			name = fmt.Sprintf("external metric %s(%v)", m.Object.Metric.Name, m.Object.Metric.Selector)
		}
		n, current, err := p.amount(v.Amount, &m.Object.Target, "object")
		if err == nil {
			*status = autoscalingv2.MetricStatus{Type: m.Type, Object: &autoscalingv2.ObjectMetricStatus{DescribedObject: m.Object.DescribedObject, Metric: m.Object.Metric, Current: current}}
		}
		return n, name, err
	case autoscalingv2.ExternalMetricSourceType:
		v, e := p.Target.Values[i], m.External
		if v.Err != nil {
			err := fmt.Errorf("unable to get external metric %s/%s/%v: %w", p.HPA.Namespace, e.Metric.Name, e.Metric.Selector, v.Err)
			if e.Target.AverageValue != nil {
				return 0, "", fmt.Errorf("failed to get %s external metric: %w", e.Metric.Name, err)
			}
			return 0, "", fmt.Errorf("failed to get external metric %s: %w", e.Metric.Name, err)
		}
		n, current, err := p.amount(v.Amount, &e.Target, "external")
		if err == nil {
			*status = autoscalingv2.MetricStatus{Type: m.Type, External: &autoscalingv2.ExternalMetricStatus{Metric: e.Metric, Current: current}}
		}
		return n, fmt.Sprintf("external metric %s(%v)", e.Metric.Name, e.Metric.Selector), err
	}
	return 0, "", fmt.Errorf("unknown metric source type %q", m.Type)
}

// resource computes a resource metric of pods or, if container is not empty, of one of their
// containers.
func (p *planner) resource(name corev1.ResourceName, container string, target *autoscalingv2.MetricTarget) (n int32, current autoscalingv2.MetricValueStatus, metric string, err error) {
	wrap := "usage"
	if target.AverageValue == nil {
		if target.AverageUtilization == nil {
			return 0, current, "", errors.New("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set")
		}
		wrap = "utilization"
	}
	fail := func(err error) (int32, autoscalingv2.MetricValueStatus, string, error) {
		return 0, current, "", fmt.Errorf("failed to get %s %s: %w", name, wrap, err)
	}
	samples, err := p.usage(name, container)
	if err != nil {
		return fail(fmt.Errorf("unable to get metrics for resource %s: %w", name, err))
	}
	g, err := p.group(samples, name)
	if err != nil {
		return fail(err)
	}
	if target.AverageValue != nil {
		goal := target.AverageValue.MilliValue()
		n, raw, err := p.average(g, goal)
		if err != nil {
			return fail(err)
		}
		q := quantity(name, raw)
		return n, autoscalingv2.MetricValueStatus{AverageValue: &q}, fmt.Sprintf("%s resource", name), nil
	}
	requests, err := requestsOf(p.Target.Pods, container, name)
	if err != nil {
		return fail(err)
	}
	n, percent, raw, err := p.utilization(g, requests, *target.AverageUtilization)
	if err != nil {
		return fail(err)
	}
	metric = fmt.Sprintf("%s resource utilization (percentage of request)", name)
	if container != "" {
		metric = fmt.Sprintf("%s container resource utilization (percentage of request)", name)
	}
	q := quantity(name, raw)
	return n, autoscalingv2.MetricValueStatus{AverageUtilization: &percent, AverageValue: &q}, metric, nil
}

// usage returns what the pods, or one container of each, use of a resource. Pods for which it is
// not known are missing.
func (p *planner) usage(name corev1.ResourceName, container string) (map[string]sample, error) {
	if p.Target.UsageErr != nil {
		return nil, fmt.Errorf("unable to fetch metrics from resource metrics API: %w", p.Target.UsageErr)
	}
	if len(p.Target.Usage) == 0 {
		return nil, errors.New("no metrics returned from resource metrics API")
	}
	out := make(map[string]sample, len(p.Target.Usage))
	for _, m := range p.Target.Usage {
		s := sample{at: m.Timestamp.Time, window: m.Window.Duration}
		known := false
		for i := range m.Containers {
			if container != "" && m.Containers[i].Name != container {
				continue
			}
			q, ok := m.Containers[i].Usage[name]
			if known = ok; !ok {
				break
			}
			s.value = plus(s.value, q.MilliValue())
		}
		if known {
			out[m.Name] = s
		}
	}
	return out, nil
}

// quantity is a value in the format of the resource.
func quantity(name corev1.ResourceName, milli int64) resource.Quantity {
	format := resource.DecimalSI
	if name == corev1.ResourceMemory {
		format = resource.BinarySI
	}
	return *resource.NewMilliQuantity(milli, format)
}

// podsMetric computes a metric of pods.
func (p *planner) podsMetric(v Value, m *autoscalingv2.PodsMetricSource) (int32, autoscalingv2.MetricValueStatus, error) {
	if v.Err != nil {
		return 0, autoscalingv2.MetricValueStatus{}, fmt.Errorf("unable to get metric %s: %w", m.Metric.Name, v.Err)
	}
	samples := make(map[string]sample, len(v.Pods))
	for name, n := range v.Pods {
		samples[name] = sample{value: n}
	}
	g, err := p.group(samples, "")
	if err != nil {
		return 0, autoscalingv2.MetricValueStatus{}, err
	}
	n, raw, err := p.average(g, m.Target.AverageValue.MilliValue())
	return n, autoscalingv2.MetricValueStatus{AverageValue: resource.NewMilliQuantity(raw, resource.DecimalSI)}, err
}

// amount computes a metric with one value.
func (p *planner) amount(value int64, target *autoscalingv2.MetricTarget, kind string) (int32, autoscalingv2.MetricValueStatus, error) {
	switch {
	case target.Value != nil && target.AverageValue == nil:
		ratio := float64(value) / float64(target.Value.MilliValue())
		status := autoscalingv2.MetricValueStatus{Value: resource.NewMilliQuantity(value, resource.DecimalSI)}
		switch {
		case p.Scale.Spec.Replicas == 0:
			return saturate(math.Ceil(ratio)), status, nil
		case p.tolerated(ratio):
			return p.Scale.Spec.Replicas, status, nil
		case len(p.Target.Pods) == 0:
			return 0, status, errors.New("unable to calculate ready pods: no pods returned by selector while calculating replica count")
		}
		return saturate(math.Ceil(ratio * float64(readyCount(p.Target.Pods)))), status, nil
	case target.AverageValue != nil:
		n, goal := p.Scale.Status.Replicas, float64(target.AverageValue.MilliValue())
		average := value
		if n > 0 {
			average = int64(math.Ceil(float64(value) / float64(n)))
		}
		if n == 0 || !p.tolerated(float64(value)/(goal*float64(n))) {
			n = saturate(math.Ceil(float64(value) / goal))
		}
		return n, autoscalingv2.MetricValueStatus{AverageValue: resource.NewMilliQuantity(average, resource.DecimalSI)}, nil
	}
	return 0, autoscalingv2.MetricValueStatus{}, fmt.Errorf("invalid %s metric source: neither a value target nor an average value target was set", kind)
}

// tolerated reports whether a ratio of usage to its target is too close to 1 to act.
func (p *planner) tolerated(ratio float64) bool {
	down, up := p.Options.Tolerance, p.Options.Tolerance
	if b := p.HPA.Spec.Behavior; b != nil {
		if b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
			down = b.ScaleDown.Tolerance.AsApproximateFloat64()
		}
		if b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
			up = b.ScaleUp.Tolerance.AsApproximateFloat64()
		}
	}
	return 1-down <= ratio && ratio <= 1+up
}
