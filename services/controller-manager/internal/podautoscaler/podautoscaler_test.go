package podautoscaler

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	. "keelson.dev/services/controller-manager/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a cluster with a deployment, its pods and their usage.
type world struct{ *World }

func start(t *testing.T, replicas int32, cpu ...string) world {
	w := world{Start(t)}
	Create(w.World, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
		Status:     appsv1.DeploymentStatus{Replicas: replicas},
	})
	for i, m := range uses(cpu...) {
		p := pods(i + 1)[i]
		p.Status.StartTime, p.Status.Conditions[0].LastTransitionTime = &metav1.Time{Time: time.Now().Add(-time.Hour)}, metav1.NewTime(time.Now().Add(-time.Hour))
		Create(w.World, p)
		Create(w.World, m)
	}
	return w
}

func autoscaler(name, target string, metrics ...autoscalingv2.MetricSpec) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Generation: 1},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: target},
			MaxReplicas:    10, Metrics: metrics,
		},
	}
}

func (w world) run() {
	o := DefaultOptions
	o.Sync = 10 * time.Millisecond
	w.Run(build(w.Cluster, o, time.Now))
}

func (w world) replicas() int32 {
	return *Get[*appsv1.Deployment](w.World, "ns", "web").Spec.Replicas
}

// condition returns the reason of a condition of an autoscaler.
func (w world) condition(name string, kind autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	conditions := Get[*autoscalingv2.HorizontalPodAutoscaler](w.World, "ns", name).Status.Conditions
	if i := slices.IndexFunc(conditions, func(c autoscalingv2.HorizontalPodAutoscalerCondition) bool { return c.Type == kind }); i >= 0 {
		return string(conditions[i].Status) + ":" + conditions[i].Reason
	}
	return ""
}

func (w world) event(reason string) bool {
	return slices.ContainsFunc(List[*corev1.Event](w.World, "ns"), func(e *corev1.Event) bool { return e.Reason == reason })
}

func TestScalesADeployment(t *testing.T) {
	w := start(t, 2, "900m", "900m")
	Create(w.World, autoscaler("h", "web", cpuPercent(50)))
	w.run()
	w.Eventually("four replicas", func() bool { return w.replicas() == 4 })
	w.Eventually("the event", func() bool { return w.event("SuccessfulRescale") })
	w.Eventually("the status", func() bool {
		s := Get[*autoscalingv2.HorizontalPodAutoscaler](w.World, "ns", "h").Status
		return s.LastScaleTime != nil && len(s.CurrentMetrics) == 1 && *s.CurrentMetrics[0].Resource.Current.AverageUtilization == 90
	})
	// The usage falls: nothing happens within the stabilization window.
	for _, name := range []string{"p0", "p1"} {
		Update(w.World, "ns", name, func(m *metricsv1beta1.PodMetrics) {
			m.Containers[0].Usage[corev1.ResourceCPU] = resource.MustParse("1m")
		})
	}
	w.Eventually("stabilization", func() bool { return w.condition("h", autoscalingv2.AbleToScale) == "True:ScaleDownStabilized" })
	if n := w.replicas(); n != 4 {
		t.Errorf("%d replicas", n)
	}
	// Another window scales down at once.
	Update(w.World, "ns", "h", func(h *autoscalingv2.HorizontalPodAutoscaler) {
		h.Generation++
		h.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr(int32(0))}}
	})
	w.Eventually("one replica", func() bool { return w.replicas() == 1 })
	for _, action := range []string{"scale_up", "scale_down"} {
		if n := testutil.ToFloat64(evaluations.WithLabelValues(action, "none")); n == 0 {
			t.Errorf("no %s was counted", action)
		}
	}
	Delete[*autoscalingv2.HorizontalPodAutoscaler](w.World, "ns", "h")
	w.Eventually("its gauge is gone", func() bool { return testutil.CollectAndCount(desired) == 0 })
}

func TestConditions(t *testing.T) {
	w := start(t, 1, "100m")
	Create(w.World, autoscaler("gone", "none", cpuPercent(50)))
	object := autoscaler("object", "web", autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		DescribedObject: autoscalingv2.CrossVersionObjectReference{Kind: "Service", Name: "s"}, Metric: autoscalingv2.MetricIdentifier{Name: "hits"},
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse("1"))},
	}})
	Create(w.World, object)
	odd := autoscaler("odd", "web", cpuPercent(50))
	odd.Spec.ScaleTargetRef.Kind = "DaemonSet"
	Create(w.World, odd)
	w.run()
	w.Eventually("a target that does not exist", func() bool {
		return w.condition("gone", autoscalingv2.AbleToScale) == "False:FailedGetScale" && w.event("FailedGetScale")
	})
	w.Eventually("a target without a scale", func() bool { return w.condition("odd", autoscalingv2.AbleToScale) == "False:FailedGetScale" })
	w.Eventually("a metric that nothing serves", func() bool {
		return w.condition("object", autoscalingv2.ScalingActive) == "False:FailedGetObjectMetric"
	})
	h := Get[*autoscalingv2.HorizontalPodAutoscaler](w.World, "ns", "object")
	if text := h.Status.Conditions[1].Message; !strings.Contains(text, "unable to get metric hits on Service ns/s: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered") {
		t.Errorf("message: %s", text)
	}
}

func TestTwoAutoscalersOfOneTarget(t *testing.T) {
	w := start(t, 2, "900m", "900m")
	Create(w.World, autoscaler("a", "web", cpuPercent(50), cpuPercent(90)))
	w.run()
	w.Eventually("the first", func() bool { return w.condition("a", autoscalingv2.ScalingActive) == "True:ValidMetricFound" })
	Create(w.World, autoscaler("b", "web", cpuPercent(50)))
	w.Eventually("both are refused", func() bool {
		return w.condition("a", autoscalingv2.ScalingActive) == "False:AmbiguousSelector" && w.condition("b", autoscalingv2.ScalingActive) == "False:AmbiguousSelector"
	})
	Delete[*autoscalingv2.HorizontalPodAutoscaler](w.World, "ns", "b")
	w.Eventually("the first again", func() bool { return w.condition("a", autoscalingv2.ScalingActive) == "True:ValidMetricFound" })
}

func TestOptions(t *testing.T) {
	for flag, ok := range map[string]bool{
		"": true, "--horizontal-pod-autoscaler-sync-period=10s": true, "--horizontal-pod-autoscaler-sync-period=1ms": false,
		"--horizontal-pod-autoscaler-tolerance=NaN": false, "--horizontal-pod-autoscaler-tolerance=2": false,
		"--horizontal-pod-autoscaler-downscale-stabilization=-1s": false, "--concurrent-horizontal-pod-autoscaler-syncs=0": false,
		"--horizontal-pod-autoscaler-cpu-initialization-period=-1s": false,
	} {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		o := Flags(fs)
		if flag != "" {
			if err := fs.Parse([]string{flag}); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.Check(); (err == nil) != ok {
			t.Errorf("%q: %v", flag, err)
		}
	}
}
