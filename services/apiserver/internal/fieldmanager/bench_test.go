package fieldmanager

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/core"
)

func pod() *corev1.Pod {
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "default", UID: "u", Labels: map[string]string{"app": "web", "tier": "front"}, Annotations: map[string]string{"note": "x"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "1", Controller: &yes}}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler", SecurityContext: &corev1.PodSecurityContext{}, EnableServiceLinks: &yes,
			Containers: []corev1.Container{{
				Name: "web", Image: "nginx:1", ImagePullPolicy: corev1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
				Ports:        []corev1.ContainerPort{{ContainerPort: 80, Protocol: corev1.ProtocolTCP}},
				Env:          []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "C", Value: "d"}},
				VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}},
				Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("64Mi")}},
			}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
}

func BenchmarkTrackCreate(b *testing.B) {
	k, f := core.Pod(), New(nil)
	obj, now := pod(), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		obj.ManagedFields = nil
		f.Track(Write{Kind: k, Object: obj, Manager: "bench", Now: now})
	}
}

func BenchmarkTrackPatch(b *testing.B) {
	k, f := core.Pod(), New(nil)
	old, now := pod(), time.Now()
	f.Track(Write{Kind: k, Object: old, Manager: "bench", Now: now})
	obj := old.DeepCopy()
	obj.Labels["app"] = "other"
	fields := obj.ManagedFields
	b.ReportAllocs()
	for b.Loop() {
		obj.ManagedFields = fields
		f.Track(Write{Kind: k, Old: old, Object: obj, Manager: "patcher", Now: now})
	}
}

func BenchmarkTrackNothing(b *testing.B) {
	k, f := core.Pod(), New(nil)
	old, now := pod(), time.Now()
	f.Track(Write{Kind: k, Object: old, Manager: "bench", Now: now})
	obj := old.DeepCopy()
	fields := obj.ManagedFields
	b.ReportAllocs()
	for b.Loop() {
		obj.ManagedFields = fields
		f.Track(Write{Kind: k, Old: old, Object: obj, Manager: "patcher", Now: now})
	}
}

func BenchmarkApimachineryCreate(b *testing.B) {
	k := core.Pod()
	ref := reference(b, k, "")
	obj := pod()
	obj.GetObjectKind().SetGroupVersionKind(k.GVK)
	live := k.New()
	live.GetObjectKind().SetGroupVersionKind(k.GVK)
	b.ReportAllocs()
	for b.Loop() {
		obj.ManagedFields = nil
		if _, err := ref.Update(live, obj, "bench"); err != nil {
			b.Fatal(err)
		}
	}
}
