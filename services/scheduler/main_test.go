package main

import (
	"testing"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/leader/leadertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var program = leadertest.Program{
	Name: name, User: "system:kube-scheduler",
	Build: func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run },
}

func TestTwoWithoutFlagsElectOne(t *testing.T) { leadertest.Elects(t, program) }

func TestItOutlivesItsCertificates(t *testing.T) { leadertest.Rotates(t, program) }

// Bindings, unschedulable conditions, evictions and events carry the leader's fence.
func TestEveryWriteIsFenced(t *testing.T) {
	s := schedules(t, leadertest.Run(t, program))
	preempts(t, s)
	s.Fenced("pods", "events")
}

func TestWorksWithoutElection(t *testing.T) { schedules(t, leadertest.RunUnelected(t, program)) }

// schedules waits until s has bound a pod that fits and refused one that does not.
func schedules(t *testing.T, s *leadertest.Service) *leadertest.Service {
	t.Helper()
	amount := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("10")}
	if _, err := client.For[*corev1.Node](s.Client).Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Capacity: amount, Allocatable: amount},
	}); err != nil {
		t.Fatal(err)
	}
	grace := int64(30)
	for name, cpu := range map[string]string{"fits": "500m", "does-not": "50"} {
		if _, err := client.For[*corev1.Pod](s.Client).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: corev1.PodSpec{SchedulerName: "default-scheduler", TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{
				Name: "c", Image: "i",
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}},
			}}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	pods := client.For[*corev1.Pod](s.Client)
	done := func() bool {
		fits, err := pods.Get(t.Context(), "default", "fits")
		if err != nil {
			t.Fatal(err)
		}
		not, err := pods.Get(t.Context(), "default", "does-not")
		if err != nil {
			t.Fatal(err)
		}
		return fits.Spec.NodeName == "n" && len(not.Status.Conditions) == 1
	}
	s.Eventually("one pod is bound and the other refused", done)
	return s
}

// preempts waits until s has evicted a pod for a more important one.
func preempts(t *testing.T, s *leadertest.Service) {
	t.Helper()
	priority := int32(10)
	pods := client.For[*corev1.Pod](s.Client)
	if _, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "important"},
		Spec: corev1.PodSpec{SchedulerName: "default-scheduler", Priority: &priority, Containers: []corev1.Container{{
			Name: "c", Image: "i",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}},
		}}},
	}); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the other terminates", func() bool {
		victim, err := pods.Get(t.Context(), "default", "fits")
		if err != nil {
			t.Fatal(err)
		}
		return victim.DeletionTimestamp != nil
	})
}
