package why_test

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/tools/keel/internal/why"
)

func TestAutoscaler(t *testing.T) {
	percent, used, generation := int32(50), int32(80), int64(1)
	value := resource.MustParse("400m")
	scaler := func(conditions ...string) *autoscalingv2.HorizontalPodAutoscaler {
		h := &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop", Generation: 1},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "shop"}, MaxReplicas: 5,
				Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
					Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
				}}},
			},
			Status: autoscalingv2.HorizontalPodAutoscalerStatus{
				ObservedGeneration: &generation, CurrentReplicas: 2, DesiredReplicas: 2,
				CurrentMetrics: []autoscalingv2.MetricStatus{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricStatus{
					Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: &used, AverageValue: &value},
				}}},
			},
		}
		for i := 0; i+3 < len(conditions); i += 4 {
			h.Status.Conditions = append(h.Status.Conditions, autoscalingv2.HorizontalPodAutoscalerCondition{
				Type: autoscalingv2.HorizontalPodAutoscalerConditionType(conditions[i]), Status: corev1.ConditionStatus(conditions[i+1]), Reason: conditions[i+2], Message: conditions[i+3],
			})
		}
		return h
	}
	able := []string{"AbleToScale", "True", "ReadyForNewScale", "recommended size matches current size"}
	failed := func(reason, message string) []string { return append(able, "ScalingActive", "False", reason, message) }
	for _, c := range []struct {
		name     string
		h        *autoscalingv2.HorizontalPodAutoscaler
		code     why.Code
		healthy  bool
		evidence string
	}{
		{"not processed", scaler(), why.ControllerBehind, false, ""},
		{"no target", scaler("AbleToScale", "False", "FailedGetScale", "no"), why.TargetMissing, false, "AbleToScale=False: FailedGetScale: no"},
		{"refused", scaler("AbleToScale", "False", "FailedUpdateScale", "quota"), why.ScaleRefused, false, "AbleToScale=False: FailedUpdateScale: quota"},
		{"switched off", scaler(failed("ScalingDisabled", "zero")...), why.ScaledToZero, false, "ScalingActive=False: ScalingDisabled: zero"},
		{"shared", scaler(failed("AmbiguousSelector", "two")...), why.SharedTarget, false, "ScalingActive=False: AmbiguousSelector: two"},
		{"no selector", scaler(failed("InvalidSelector", "none")...), why.NoSelector, false, "ScalingActive=False: InvalidSelector: none"},
		{"no request", scaler(failed("FailedGetResourceMetric", "missing request for cpu in container web of Pod p")...), why.RequestMissing, false, "ScalingActive=False: FailedGetResourceMetric: missing request for cpu in container web of Pod p"},
		{"no container", scaler(failed("FailedGetContainerResourceMetric", "container x not found in Pod p")...), why.MetricMissing, false, "ScalingActive=False: FailedGetContainerResourceMetric: container x not found in Pod p"},
		{"no API", scaler(failed("FailedGetPodsMetric", "no custom metrics API")...), why.MetricsAPIMissing, false, "ScalingActive=False: FailedGetPodsMetric: no custom metrics API"},
		{"no usage", scaler(failed("FailedGetResourceMetric", "no metrics returned from resource metrics API")...), why.MetricMissing, false, "ScalingActive=False: FailedGetResourceMetric: no metrics returned from resource metrics API"},
		{"at its limit", scaler(append(able, "ScalingLimited", "True", "TooManyReplicas", "more")...), why.AtMaximum, false, "cpu: 80% of the requests, the target is 50%"},
		{"idle", scaler(append(able, "ScalingLimited", "True", "TooFewReplicas", "fewer")...), why.Healthy, true, "cpu: 80% of the requests, the target is 50%"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &why.World{Now: now, Autoscalers: []*autoscalingv2.HorizontalPodAutoscaler{c.h}}
			a, err := w.Explain(why.Ref{Kind: "HorizontalPodAutoscaler", Namespace: "default", Name: "shop"})
			if err != nil {
				t.Fatal(err)
			}
			first := ""
			if len(a.Evidence) > 0 {
				first = a.Evidence[0].Text
			}
			if a.Code != c.code || a.Healthy != c.healthy || first != c.evidence || !a.Healthy && len(a.Next) == 0 && a.Code != why.ScaleRefused {
				t.Errorf("%+v", a)
			}
		})
	}
	// The deployment has too few pods because one of them does not start.
	h := scaler(able...)
	two := int32(2)
	w := &why.World{Now: now, Autoscalers: []*autoscalingv2.HorizontalPodAutoscaler{h}, Deployments: []*appsv1.Deployment{{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop", Generation: 1},
		Spec:       appsv1.DeploymentSpec{Replicas: &two, Paused: true},
		Status:     appsv1.DeploymentStatus{ObservedGeneration: 1},
	}}}
	a, err := w.Explain(why.Ref{Kind: "HorizontalPodAutoscaler", Namespace: "default", Name: "shop"})
	if err != nil || a.Code != why.TargetHoldsUp || a.Because == nil || a.Because.Object.Kind != "Deployment" {
		t.Errorf("%+v, %v", a, err)
	}
}
