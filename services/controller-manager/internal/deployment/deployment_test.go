package deployment_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/deployment"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/replicaset"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func web(n int32) *appsv1.Deployment {
	surge, unavailable, limit := intstr.FromInt32(1), intstr.FromInt32(0), int32(2)
	labels := map[string]string{"app": "web"}
	deadline := int32(600)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels}, RevisionHistoryLimit: &limit, ProgressDeadlineSeconds: &deadline,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
			},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
			},
		},
	}
}

func complete(w *World, image string, n int32) func() bool {
	return func() bool {
		d := Get[*appsv1.Deployment](w, "default", "web")
		if d.Status.ObservedGeneration < d.Generation || d.Status.UpdatedReplicas != n || d.Status.Replicas != n || d.Status.AvailableReplicas != n {
			return false
		}
		return len(serving(w, image)) == int(n)
	}
}

// serving is the images' ready pods, as the cache sees them.
func serving(w *World, image string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range List[*corev1.Pod](w, "default") {
		if podstate.Active(p) && podstate.Ready(p) && p.Spec.Containers[0].Image == image {
			out = append(out, p)
		}
	}
	return out
}

// A deployment comes up, rolls on under watch without ever serving less than it
// must, is rolled back, and keeps its revisions.
func TestRollsOutAndBack(t *testing.T) {
	w := Start(t)
	w.Kubelet("node-1", nil)
	w.Run(deployment.New(w.Cluster), replicaset.New(w.Cluster))
	Create(w, web(3))
	w.Eventually("v1 is complete", complete(w, "v1", 3))

	var least atomic.Int32
	least.Store(3)
	cluster.Of[*corev1.Pod](w.Cluster).Subscribe(func(client.Event[*corev1.Pod]) {
		n := int32(0)
		for _, p := range cluster.Of[*corev1.Pod](w.Cluster).List() {
			if podstate.Active(p) && podstate.Ready(p) {
				n++
			}
		}
		least.Store(min(least.Load(), n))
	})
	for i, image := range []string{"v2", "v3", "v1"} {
		Update(w, "default", "web", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
		w.Eventually(image+" is complete", complete(w, image, 3))
		if got := Get[*appsv1.Deployment](w, "default", "web").Annotations[deployment.RevisionAnnotation]; got != fmt.Sprint(i+2) {
			t.Errorf("%s is revision %s", image, got)
		}
		if got := Get[*appsv1.Deployment](w, "default", "web").Generation; got != int64(i+2) {
			t.Errorf("%s is generation %d: the controller made some of its own", image, got)
		}
	}
	if least.Load() < 3 {
		t.Errorf("only %d served in between", least.Load())
	}
	w.Eventually("three sets are left", func() bool { return len(List[*appsv1.ReplicaSet](w, "default")) == 3 })
}

// A controller that starts anew while a rollout runs goes on with it.
func TestGoesOnAfterARestart(t *testing.T) {
	w := Start(t)
	w.Kubelet("node-1", nil)
	stop := w.Run(deployment.New(w.Cluster), replicaset.New(w.Cluster))
	Create(w, web(5))
	w.Eventually("some pods", func() bool { return cluster.Of[*corev1.Pod](w.Cluster).Len() > 1 })
	stop()
	Update(w, "default", "web", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "v2" })
	w.Run(deployment.New(w.Cluster), replicaset.New(w.Cluster))
	w.Eventually("v2 is complete", complete(w, "v2", 5))
	w.Never("there are more pods", func() bool { return len(List[*corev1.Pod](w, "default")) > 5 })
}

// Sets without an owner that match are adopted with their pods.
func TestAdopts(t *testing.T) {
	w := Start(t)
	w.Kubelet("node-1", nil)
	orphan := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "stray", Labels: map[string]string{"app": "web"}},
		Spec:       appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Template: web(1).Spec.Template},
	}
	one := int32(1)
	orphan.Spec.Replicas = &one
	Create(w, orphan)
	d := Create(w, web(2))
	w.CatchUp() // A controller that sees only the deployment creates another set.
	w.Run(deployment.New(w.Cluster), replicaset.New(w.Cluster))
	w.Eventually("v1 is complete", complete(w, "v1", 2))
	sets := List[*appsv1.ReplicaSet](w, "default")
	if len(sets) != 1 || metav1.GetControllerOf(sets[0]) == nil || metav1.GetControllerOf(sets[0]).UID != d.UID {
		t.Errorf("sets: %+v", sets)
	}
}

// A foreign set of the name that the new one should have is stepped aside of.
func TestCollision(t *testing.T) {
	w := Start(t)
	stop := w.Run(deployment.New(w.Cluster))
	Create(w, web(1))
	w.Eventually("the set", func() bool { return len(List[*appsv1.ReplicaSet](w, "default")) == 1 })
	stop()
	name := List[*appsv1.ReplicaSet](w, "default")[0].Name
	Delete[*appsv1.Deployment](w, "default", "web")
	Delete[*appsv1.ReplicaSet](w, "default", name)
	other := web(1)
	foreign := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: appsv1.ReplicaSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}},
	}}
	Create(w, foreign)
	w.Run(deployment.New(w.Cluster))
	Create(w, other)
	w.Eventually("another name", func() bool {
		for _, rs := range List[*appsv1.ReplicaSet](w, "default") {
			if rs.Name != name && metav1.GetControllerOf(rs) != nil {
				return true
			}
		}
		return false
	})
}
