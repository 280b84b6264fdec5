package podautoscaler

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

var t0 = time.Unix(1_700_000_000, 0)

func ptr[T any](v T) *T { return &v }

// pod returns a pod that has long been ready and requests 1 core (and 1 KiB) in container c.
func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Ki"),
		}}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: ptr(metav1.NewTime(t0.Add(-time.Hour))),
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(t0.Add(-time.Hour))}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// pods returns n pods: p0, p1 and so on.
func pods(n int) []*corev1.Pod {
	var out []*corev1.Pod
	for i := range n {
		out = append(out, pod(fmt.Sprint("p", i)))
	}
	return out
}

// uses returns the usage of p0, p1 and so on, in CPU.
func uses(cpu ...string) []*metricsv1beta1.PodMetrics {
	var out []*metricsv1beta1.PodMetrics
	for i, q := range cpu {
		if q == "" {
			continue
		}
		out = append(out, &metricsv1beta1.PodMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: "ns", Labels: map[string]string{"app": "web"}},
			Timestamp:  metav1.NewTime(t0.Add(-5 * time.Second)), Window: metav1.Duration{Duration: 15 * time.Second},
			Containers: []metricsv1beta1.ContainerMetrics{{Name: "c", Usage: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse(q), corev1.ResourceMemory: resource.MustParse("512"),
			}}},
		})
	}
	return out
}

func cpuPercent(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

func cpuAverage(value string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr(resource.MustParse(value))},
	}}
}

func external(target autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "queue"}, Target: target,
	}}
}

// observe returns an observation: current replicas, from 1 to 10, no history.
func observe(current int32, target Target, metrics ...autoscalingv2.MetricSpec) Observation {
	return Observation{
		HPA: &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Name: "h", Namespace: "ns", Generation: 3},
			Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: ptr(int32(1)), MaxReplicas: 10, Metrics: metrics},
			Status:     autoscalingv2.HorizontalPodAutoscalerStatus{DesiredReplicas: current},
		},
		Scale:  &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: current}, Status: autoscalingv1.ScaleStatus{Replicas: current}},
		Target: target, Now: t0, Options: DefaultOptions,
		History: History{Recommendations: []Recommendation{{t0.Add(-30 * time.Minute), current}}},
	}
}

// brief shows a decision: the number, the reason, and the reasons of conditions and events.
func brief(d Decision) string {
	out := []string{"stays"}
	if d.Rescale {
		out[0] = fmt.Sprintf("%d (%s)", d.Replicas, d.Reason)
	}
	for _, c := range d.Status.Conditions {
		out = append(out, fmt.Sprintf("%s=%s:%s", c.Type, c.Status, c.Reason))
	}
	for _, e := range d.Events {
		out = append(out, "!"+e.Reason)
	}
	return strings.Join(out, " ")
}

const (
	up     = "cpu resource utilization (percentage of request) above target"
	down   = "All metrics below target"
	normal = " AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange"
)

func TestPlan(t *testing.T) {
	starting := func(p *corev1.Pod) {
		p.Status.StartTime = ptr(metav1.NewTime(t0.Add(-time.Minute)))
		p.Status.Conditions[0].Status = corev1.ConditionFalse
	}
	for _, c := range []struct {
		name string
		o    Observation
		want string
	}{
		{"twice the target", observe(3, Target{Pods: pods(3), Usage: uses("600m", "600m", "600m")}, cpuPercent(30)), "6 (" + up + ")" + normal},
		{"rounded up", observe(3, Target{Pods: pods(3), Usage: uses("500m", "500m", "500m")}, cpuPercent(40)), "4 (" + up + ")" + normal},
		{"half the target", observe(4, Target{Pods: pods(4), Usage: uses("200m", "200m", "200m", "200m")}, cpuPercent(40)), "2 (" + down + ")" + normal},
		{"at the edge of the tolerance", observe(3, Target{Pods: pods(3), Usage: uses("330m", "330m", "330m")}, cpuPercent(30)), "stays" + normal},
		{"over the tolerance", observe(3, Target{Pods: pods(3), Usage: uses("340m", "340m", "340m")}, cpuPercent(30)), "4 (" + up + ")" + normal},
		{"average value", observe(2, Target{Pods: pods(2), Usage: uses("300m", "500m")}, cpuAverage("200m")), "4 (cpu resource above target)" + normal},
		{"the largest of several", observe(2, Target{Pods: pods(2), Usage: uses("300m", "500m")}, cpuAverage("400m"), cpuPercent(10)), "4 (" + up + ") AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=True:ScaleUpLimit"},
		{"more than the most", observe(6, Target{Pods: pods(6), Usage: uses("1", "1", "1", "1", "1", "1")}, cpuPercent(20)), "10 (" + up + ") AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=True:TooManyReplicas"},
		{"fewer than the least", func() Observation {
			o := observe(4, Target{Pods: pods(4), Usage: uses("1m", "1m", "1m", "1m")}, cpuPercent(50))
			o.HPA.Spec.MinReplicas = ptr(int32(2))
			return o
		}(), "2 (" + down + ") AbleToScale=True:ReadyForNewScale ScalingActive=True:ValidMetricFound ScalingLimited=True:TooFewReplicas"},
		{"above the bounds", observe(12, Target{}, cpuPercent(50)), "10 (Current number of replicas above Spec.MaxReplicas) AbleToScale=True:SucceededGetScale"},
		{"below the bounds", func() Observation {
			o := observe(1, Target{}, cpuPercent(50))
			o.HPA.Spec.MinReplicas = ptr(int32(3))
			return o
		}(), "3 (Current number of replicas below Spec.MinReplicas) AbleToScale=True:SucceededGetScale"},
		{"switched off by hand", observe(0, Target{}, cpuPercent(50)), "stays AbleToScale=True:SucceededGetScale ScalingActive=False:ScalingDisabled"},
		{"no scale", func() Observation {
			o := observe(1, Target{}, cpuPercent(50))
			o.ScaleErr = errors.New(`deployments.apps "x" not found`)
			return o
		}(), "stays AbleToScale=False:FailedGetScale !FailedGetScale"},
		{"no usage", observe(2, Target{Pods: pods(2)}, cpuPercent(50)), "stays AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetResourceMetric !FailedGetResourceMetric !FailedComputeMetricsReplicas"},
		{"no pods", observe(2, Target{Usage: uses("1")}, cpuPercent(50)), "stays AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetResourceMetric !FailedGetResourceMetric !FailedComputeMetricsReplicas"},
		{"no request", observe(1, Target{Pods: []*corev1.Pod{pod("p0", func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = nil })}, Usage: uses("1")}, cpuPercent(50)),
			"stays AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetResourceMetric !FailedGetResourceMetric !FailedComputeMetricsReplicas"},
		{"ambiguous", observe(1, Target{Err: errors.New("two"), Event: "AmbiguousSelector", Reason: "AmbiguousSelector", Message: "two"}, cpuPercent(50)),
			"stays AbleToScale=True:SucceededGetScale ScalingActive=False:AmbiguousSelector !AmbiguousSelector !FailedComputeMetricsReplicas"},
		// A pod that starts uses nothing when the number would grow, and is ignored otherwise.
		{"unready pods dampen growth", observe(3, Target{Pods: []*corev1.Pod{pod("p0"), pod("p1"), pod("p2", starting)}, Usage: uses("600m", "600m", "1")}, cpuPercent(30)), "4 (" + up + ")" + normal},
		{"unready pods do not count for shrinking", observe(3, Target{Pods: []*corev1.Pod{pod("p0"), pod("p1"), pod("p2", starting)}, Usage: uses("100m", "100m", "1")}, cpuPercent(30)), "1 (" + down + ")" + normal},
		{"all pods are unready", observe(1, Target{Pods: []*corev1.Pod{pod("p0", starting)}, Usage: uses("1")}, cpuPercent(30)),
			"stays AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetResourceMetric !FailedGetResourceMetric !FailedComputeMetricsReplicas"},
		{"pods without a sample use all when shrinking", observe(4, Target{Pods: pods(4), Usage: uses("100m", "100m", "100m", "")}, cpuPercent(50)), "3 (" + down + ")" + normal},
		{"pods without a sample use nothing when growing", observe(4, Target{Pods: pods(4), Usage: uses("1", "1", "", "")}, cpuPercent(40)), "5 (" + up + ")" + normal},
		{"the direction is not changed by assumptions", observe(2, Target{Pods: pods(2), Usage: uses("600m", "")}, cpuPercent(50)), "stays" + normal},
		{"failed and deleted pods are left out", observe(3, Target{Pods: []*corev1.Pod{
			pod("p0"), pod("p1", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), pod("p2", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: t0} }),
		}, Usage: uses("600m", "1", "1")}, cpuPercent(10)), "6 (" + up + ")" + normal},
		{"one of two unknown: growth goes on", observe(2, Target{Pods: pods(2), Usage: uses("1", "1"), Values: map[int]Value{0: {Err: errors.New("none")}}},
			external(autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse("1"))}), cpuPercent(50)), "4 (" + up + ")" + normal + " !FailedGetExternalMetric"},
		{"one of two unknown: no shrinking", observe(2, Target{Pods: pods(2), Usage: uses("1m", "1m"), Values: map[int]Value{0: {Err: errors.New("none")}}},
			external(autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse("1"))}), cpuPercent(50)),
			"stays AbleToScale=True:SucceededGetScale ScalingActive=False:FailedGetExternalMetric !FailedGetExternalMetric !FailedComputeMetricsReplicas"},
		{"external value", observe(2, Target{Pods: pods(2), Values: map[int]Value{0: {Amount: 300_000}}},
			external(autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse("150"))})), "4 (external metric queue(nil) above target)" + normal},
		{"external average", observe(2, Target{Pods: pods(2), Values: map[int]Value{0: {Amount: 300_000}}},
			external(autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr(resource.MustParse("100"))})), "3 (external metric queue(nil) above target)" + normal},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := c.o.HPA.DeepCopy()
			d := Plan(c.o)
			if got := brief(d); got != c.want {
				t.Errorf("\n got %s\nwant %s\n%v", got, c.want, d.Err)
			}
			if c.o.ScaleErr == nil && (d.Status.ObservedGeneration == nil || *d.Status.ObservedGeneration != 3 || d.Status.CurrentReplicas != c.o.Scale.Spec.Replicas) {
				t.Errorf("status: %+v", d.Status)
			}
			if !slices.Equal(before.Status.Conditions, c.o.HPA.Status.Conditions) {
				t.Error("the autoscaler was changed")
			}
		})
	}
}

func TestMessages(t *testing.T) {
	const unable = "the HPA was unable to compute the replica count: "
	memory := cpuPercent(50)
	memory.Resource = &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceMemory, Target: memory.Resource.Target}
	sidecar := autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
		Name: corev1.ResourceCPU, Container: "other", Target: cpuPercent(50).Resource.Target,
	}}
	object := autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		DescribedObject: autoscalingv2.CrossVersionObjectReference{Kind: "Service", Name: "s"}, Metric: autoscalingv2.MetricIdentifier{Name: "hits"},
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse("1"))},
	}}
	for _, c := range []struct {
		o    Observation
		want string
	}{
		{observe(1, Target{Pods: pods(1)}, cpuPercent(50)), unable + "failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"},
		{observe(1, Target{Pods: pods(1), UsageErr: errors.New("down")}, cpuAverage("1")), unable + "failed to get cpu usage: unable to get metrics for resource cpu: unable to fetch metrics from resource metrics API: down"},
		{observe(1, Target{Pods: []*corev1.Pod{pod("p0", func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = nil })}, Usage: uses("1")}, memory), unable + "failed to get memory utilization: missing request for memory in container c of Pod p0"},
		{observe(1, Target{Pods: pods(1), Usage: uses("1")}, sidecar), unable + "failed to get cpu utilization: did not receive metrics for targeted pods (pods might be unready)"},
		{observe(1, Target{Pods: pods(1), Values: map[int]Value{0: {Err: errors.New("none")}}}, object), unable + "unable to get metric hits on Service ns/s: none"},
	} {
		d := Plan(c.o)
		if got := d.Status.Conditions[1].Message; got != c.want {
			t.Errorf("\n got %s\nwant %s", got, c.want)
		}
		if !strings.HasPrefix(d.Err.Error(), "invalid metrics (1 invalid out of 1), first error is: failed to get ") {
			t.Errorf("error: %v", d.Err)
		}
	}
	d := Plan(observe(1, Target{Pods: pods(1), Usage: uses("250m")}, cpuPercent(50), memory))
	cpu, used := d.Status.CurrentMetrics[0].Resource.Current, d.Status.CurrentMetrics[1].Resource.Current
	if *cpu.AverageUtilization != 25 || cpu.AverageValue.String() != "250m" || *used.AverageUtilization != 50 || used.AverageValue.String() != "512" {
		t.Errorf("metrics: %+v", d.Status.CurrentMetrics)
	}
}

func TestRescaled(t *testing.T) {
	o := observe(2, Target{Pods: pods(2), Usage: uses("1", "1")}, cpuPercent(50))
	d := Plan(o)
	d.Rescaled(nil, t0)
	if got := brief(d); !strings.Contains(got, "AbleToScale=True:SucceededRescale") || !strings.Contains(got, "ScaledToZero=False:NotScaledToZero") || !strings.HasSuffix(got, "!SuccessfulRescale") {
		t.Error(got)
	}
	if d.Status.LastScaleTime == nil || d.Status.DesiredReplicas != 4 || d.Events[0].Message != "New size: 4; reason: "+up {
		t.Errorf("%+v", d)
	}
	d = Plan(o)
	d.Rescaled(errors.New("quota"), t0)
	if got := brief(d); !strings.Contains(got, "AbleToScale=False:FailedUpdateScale") || !strings.HasSuffix(got, "!FailedRescale") || d.Status.DesiredReplicas != 2 || d.Status.LastScaleTime != nil {
		t.Errorf("%s, %+v", got, d.Status)
	}
}

func TestScaleToZero(t *testing.T) {
	queue := external(autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse("10"))})
	o := observe(1, Target{Pods: pods(1), Values: map[int]Value{0: {}}}, queue)
	o.HPA.Spec.MinReplicas = ptr(int32(0))
	d := Plan(o)
	if !d.Rescale || d.Replicas != 0 {
		t.Fatal(brief(d))
	}
	d.Rescaled(nil, t0)
	if got := brief(d); !strings.Contains(got, "ScaledToZero=True:ScaledToZero") {
		t.Error(got)
	}
	zero := observe(0, Target{Values: map[int]Value{0: {Amount: 25_000}}}, queue)
	zero.HPA.Spec.MinReplicas, zero.HPA.Status = ptr(int32(0)), d.Status
	if d := Plan(zero); !d.Rescale || d.Replicas != 3 {
		t.Errorf("from zero: %s", brief(d))
	}
	zero.Target.Values[0] = Value{}
	if d := Plan(zero); d.Rescale {
		t.Errorf("stays at zero: %s", brief(d))
	}
	zero.HPA.Spec.MinReplicas = ptr(int32(2))
	if d := Plan(zero); !d.Rescale || d.Replicas != 2 {
		t.Errorf("a larger minimum: %s", brief(d))
	}
}

func TestStabilization(t *testing.T) {
	low := func(o Observation) Observation {
		o.History = History{Recommendations: []Recommendation{{t0.Add(-4 * time.Minute), 5}, {t0.Add(-2 * time.Minute), 3}}}
		return o
	}
	idle := Target{Pods: pods(6), Usage: uses("1m", "1m", "1m", "1m", "1m", "1m")}
	if got, want := brief(Plan(low(observe(6, idle, cpuPercent(50))))), "5 ("+down+") AbleToScale=True:ScaleDownStabilized ScalingActive=True:ValidMetricFound ScalingLimited=False:DesiredWithinRange"; got != want {
		t.Errorf("without behavior:\n got %s\nwant %s", got, want)
	}
	o := low(observe(6, idle, cpuPercent(50)))
	o.HPA.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr(int32(180))}}
	if got := brief(Plan(o)); !strings.HasPrefix(got, "3 (") || !strings.Contains(got, "ScaleDownStabilized") {
		t.Errorf("a window of 3 minutes: %s", got)
	}
	o.HPA.Spec.Behavior.ScaleDown.StabilizationWindowSeconds = ptr(int32(0))
	if got := brief(Plan(o)); !strings.HasPrefix(got, "1 (") || !strings.Contains(got, "ReadyForNewScale") {
		t.Errorf("no window: %s", got)
	}
	busy := low(observe(2, Target{Pods: pods(2), Usage: uses("2", "2")}, cpuPercent(50)))
	busy.HPA.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr(int32(180))}}
	if got := brief(Plan(busy)); !strings.HasPrefix(got, "3 (") || !strings.Contains(got, "ScaleUpStabilized") {
		t.Errorf("a window for growth: %s", got)
	}
}

func TestPolicies(t *testing.T) {
	rules := func(choose autoscalingv2.ScalingPolicySelect, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
		return &autoscalingv2.HPAScalingRules{SelectPolicy: &choose, Policies: policies, StabilizationWindowSeconds: ptr(int32(0))}
	}
	by := func(kind autoscalingv2.HPAScalingPolicyType, value, period int32) autoscalingv2.HPAScalingPolicy {
		return autoscalingv2.HPAScalingPolicy{Type: kind, Value: value, PeriodSeconds: period}
	}
	const podsPolicy, percent = autoscalingv2.PodsScalingPolicy, autoscalingv2.PercentScalingPolicy
	most, least, off := autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect
	busy := []string{"10", "10", "10", "10"}
	idle := []string{"1m", "1m", "1m", "1m"}
	for _, c := range []struct {
		name     string
		up, down *autoscalingv2.HPAScalingRules
		usage    []string
		changes  []Change
		want     int32
		reason   string
	}{
		{"default up", nil, nil, busy, nil, 8, "ScaleUpLimit"},
		{"default down", nil, rules(most), idle, nil, 1, "TooFewReplicas"},
		{"two pods", rules(most, by(podsPolicy, 2, 60)), nil, busy, nil, 6, "ScaleUpLimit"},
		{"10 % is rounded up", rules(most, by(percent, 10, 60)), nil, busy, nil, 5, "ScaleUpLimit"},
		{"the larger change", rules(most, by(podsPolicy, 1, 60), by(percent, 100, 60)), nil, busy, nil, 8, "ScaleUpLimit"},
		{"the smaller change", rules(least, by(podsPolicy, 1, 60), by(percent, 100, 60)), nil, busy, nil, 5, "ScaleUpLimit"},
		{"no growth", rules(off, by(podsPolicy, 1, 60)), nil, busy, nil, 4, "ScaleUpLimit"},
		{"what was added in the period counts", rules(most, by(podsPolicy, 3, 60)), nil, busy, []Change{{t0.Add(-30 * time.Second), 2}, {t0.Add(-90 * time.Second), 1}}, 5, "ScaleUpLimit"},
		{"all was added in the period", rules(most, by(podsPolicy, 3, 60)), nil, busy, []Change{{t0.Add(-30 * time.Second), 3}}, 4, "ScaleUpLimit"},
		{"one pod fewer", nil, rules(most, by(podsPolicy, 1, 60)), idle, nil, 3, "ScaleDownLimit"},
		{"50 % fewer", nil, rules(most, by(percent, 50, 60)), idle, nil, 2, "ScaleDownLimit"},
		{"the larger step down", nil, rules(most, by(podsPolicy, 1, 60), by(percent, 50, 60)), idle, nil, 2, "ScaleDownLimit"},
		{"the smaller step down", nil, rules(least, by(podsPolicy, 1, 60), by(percent, 50, 60)), idle, nil, 3, "ScaleDownLimit"},
		{"no shrinking", nil, rules(off), idle, nil, 4, "ScaleDownLimit"},
		{"what was removed in the period counts", nil, rules(most, by(podsPolicy, 2, 60)), idle, []Change{{t0.Add(-30 * time.Second), -1}}, 3, "ScaleDownLimit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := observe(4, Target{Pods: pods(4), Usage: uses(c.usage...)}, cpuPercent(50))
			o.HPA.Spec.MaxReplicas = 100
			o.HPA.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: c.up, ScaleDown: c.down}
			o.History.Changes = c.changes
			d := Plan(o)
			limited := d.Status.Conditions[2]
			if d.Replicas != c.want || limited.Reason != c.reason {
				t.Errorf("%d replicas, %s; want %d, %s", d.Replicas, limited.Reason, c.want, c.reason)
			}
		})
	}
}

func TestTolerance(t *testing.T) {
	o := observe(4, Target{Pods: pods(4), Usage: uses("600m", "600m", "600m", "600m")}, cpuPercent(50))
	o.HPA.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: &autoscalingv2.HPAScalingRules{Tolerance: ptr(resource.MustParse("0.25"))}}
	if d := Plan(o); d.Rescale {
		t.Errorf("within a tolerance of 25 %%: %s", brief(d))
	}
	o.HPA.Spec.Behavior.ScaleUp.Tolerance = ptr(resource.MustParse("0.1"))
	if d := Plan(o); !d.Rescale {
		t.Errorf("outside a tolerance of 10 %%: %s", brief(d))
	}
}

func TestHistoryIsBounded(t *testing.T) {
	o := observe(4, Target{Pods: pods(4), Usage: uses("1", "1", "1", "1")}, cpuPercent(100))
	o.HPA.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{}
	for range 1000 {
		o.Now = o.Now.Add(15 * time.Second)
		d := Plan(o)
		d.Rescaled(nil, o.Now)
		o.History = d.History
	}
	if n, m := len(o.History.Recommendations), len(o.History.Changes); n > 242 || m > 242 {
		t.Errorf("%d recommendations and %d changes are remembered", n, m)
	}
}

func TestRequests(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p := pod("p0", func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{
			{Name: "init"},
			{Name: "sidecar", RestartPolicy: &always, Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m")}}},
		}
	})
	whole := pod("p1", func(p *corev1.Pod) {
		p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3")}}
	})
	got, err := requestsOf([]*corev1.Pod{p, whole}, "", corev1.ResourceCPU)
	if err != nil || got["p0"] != 1500 || got["p1"] != 3000 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := requestsOf([]*corev1.Pod{p}, "sidecar", corev1.ResourceCPU); err != nil || got["p0"] != 500 {
		t.Errorf("sidecar: %v, %v", got, err)
	}
	if _, err := requestsOf([]*corev1.Pod{p}, "none", corev1.ResourceCPU); err == nil || err.Error() != "container none not found in Pod p0" {
		t.Errorf("unknown container: %v", err)
	}
}

// Sums and percentages that exceed their types are the largest numbers, and never scale down.
func TestPlanOverflows(t *testing.T) {
	memory := func(percent int32) autoscalingv2.MetricSpec {
		m := cpuPercent(percent)
		m.Resource.Name = corev1.ResourceMemory
		return m
	}
	for _, c := range []struct {
		name, used, requested string
		pods                  int
		percent               int32
		want                  int32
	}{
		{"a percentage beyond 32 bits", "30Gi", "1Ki", 2, 50, 4},
		{"a sum of 100 TiB", "50Ti", "1Ti", 2, 50, 4},
		{"a sum beyond 64 bits", "5Ei", "1Ei", 2, 50, 4},
		{"a goal beyond 64 bits", "1Ki", "5Ei", 2, 2_000_000_000, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := Target{Pods: pods(c.pods), Usage: uses("1", "1")}
			for i := range target.Pods {
				target.Pods[i].Spec.Containers[0].Resources.Requests[corev1.ResourceMemory] = resource.MustParse(c.requested)
				target.Usage[i].Containers[0].Usage[corev1.ResourceMemory] = resource.MustParse(c.used)
			}
			if d := Plan(observe(2, target, memory(c.percent))); d.Replicas != c.want {
				t.Errorf("%d replicas, want %d: %s", d.Replicas, c.want, brief(d))
			}
		})
	}
	for _, c := range []struct {
		n       int64
		percent int32
		want    int64
	}{{1000, 150, 1500}, {math.MaxInt64, 100, math.MaxInt64}, {math.MaxInt64, 101, math.MaxInt64}, {math.MaxInt64, math.MaxInt32, math.MaxInt64}} {
		if got := portion(c.n, c.percent); got != c.want {
			t.Errorf("%d %% of %d: %d, want %d", c.percent, c.n, got, c.want)
		}
	}
}
