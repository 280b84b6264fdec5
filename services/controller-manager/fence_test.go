package main

import (
	"testing"

	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/leader/leadertest"
)

func create[T client.Object](s *leadertest.Service, obj T) {
	s.Helper()
	if _, err := client.For[T](s.Client).Create(s.Context(), obj); err != nil {
		s.Fatal(err)
	}
}

var program = leadertest.Program{
	Name: name, User: "system:kube-controller-manager",
	Build: func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run },
	Args:  []string{"--node-startup-grace-period", "100ms"},
}

func TestTwoWithoutFlagsElectOne(t *testing.T) { leadertest.Elects(t, program) }

func TestItOutlivesItsCertificates(t *testing.T) { leadertest.Rotates(t, program) }

func TestWorksWithoutElection(t *testing.T) {
	s := leadertest.RunUnelected(t, program)
	create(s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	s.Eventually("the namespace has its service account", func() bool {
		_, err := client.For[*corev1.ServiceAccount](s.Client).Get(t.Context(), "shop", "default")
		return err == nil
	})
}

// Everything that the controllers write carries the leader's fence: creations, batches,
// status, deletions of the garbage collector and of namespaces, and events.
func TestEveryWriteIsFenced(t *testing.T) {
	s := leadertest.Run(t, program)
	create(s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	create(s, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	labels := map[string]string{"app": "web"}
	two := int32(2)
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
	}
	create(s, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template,
	}})
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	create(s, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "work"}, Spec: batchv1.JobSpec{
		Parallelism: &two, Completions: &two, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"job": "work"}}, Template: template,
	}})
	create(s, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
		Selector: labels, Ports: []corev1.ServicePort{{Port: 80}},
	}})
	create(s, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "orphan",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "none", UID: "gone"}},
	}})
	s.Fenced("pods", "replicasets", "deployments", "jobs", "endpointslices", "serviceaccounts", "configmaps", "nodes", "events")
	pods := client.For[*corev1.Pod](s.Client)
	s.Eventually("the orphan is collected", func() bool {
		p, err := pods.Get(t.Context(), "shop", "orphan")
		return err != nil || p.DeletionTimestamp != nil
	})
	if err := client.For[*corev1.Namespace](s.Client).Delete(t.Context(), "", "shop"); err != nil {
		t.Fatal(err)
	}
	s.Fenced("namespaces")
}
