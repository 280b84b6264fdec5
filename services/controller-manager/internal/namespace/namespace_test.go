package namespace_test

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/controller-manager/internal/namespace"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fill(w *World, ns string) {
	Create(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	meta := metav1.ObjectMeta{Namespace: ns, Name: "a"}
	Create(w, &corev1.ConfigMap{ObjectMeta: meta})
	Create(w, &corev1.Secret{ObjectMeta: meta})
	Create(w, &corev1.Service{ObjectMeta: meta})
	grace := int64(30)
	Create(w, &corev1.Pod{ObjectMeta: meta, Spec: corev1.PodSpec{NodeName: "n1", TerminationGracePeriodSeconds: &grace}})
}

func condition(ns *corev1.Namespace, t corev1.NamespaceConditionType) corev1.NamespaceCondition {
	for _, c := range ns.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return corev1.NamespaceCondition{}
}

// Pods end first; then all the rest goes, finalizers are waited for, and at last
// the namespace itself.
func TestEmptiesInOrder(t *testing.T) {
	w := Start(t)
	w.Run(namespace.New(w.Cluster))
	fill(w, "one")
	fill(w, "other")
	Update(w, "one", "a", func(cm *corev1.ConfigMap) { cm.Finalizers = []string{"example.com/hold"} })
	Delete[*corev1.Namespace](w, "", "one")
	w.Eventually("the pod is asked to end", func() bool { return Get[*corev1.Pod](w, "one", "a").DeletionTimestamp != nil })
	w.Eventually("the condition", func() bool {
		c := condition(Get[*corev1.Namespace](w, "", "one"), corev1.NamespaceContentRemaining)
		return c.Status == corev1.ConditionTrue && strings.Contains(c.Message, "pods has 1 resource instances")
	})
	if !Exists[*corev1.Secret](w, "one", "a") || !Exists[*corev1.Service](w, "one", "a") {
		t.Error("something went before the pod had ended")
	}
	w.Kubelet("n1", nil)
	w.Eventually("the rest is deleted", func() bool { return !Exists[*corev1.Secret](w, "one", "a") })
	w.Eventually("the finalizer shows", func() bool {
		c := condition(Get[*corev1.Namespace](w, "", "one"), corev1.NamespaceFinalizersRemaining)
		return c.Status == corev1.ConditionTrue && strings.Contains(c.Message, "example.com/hold in 1")
	})
	Update(w, "one", "a", func(cm *corev1.ConfigMap) { cm.Finalizers = nil })
	w.Eventually("the namespace is deleted", func() bool { return !Exists[*corev1.Namespace](w, "", "one") })
	if !Exists[*corev1.Secret](w, "other", "a") {
		t.Error("another namespace was touched")
	}
}

// A kind that cannot be emptied shows, and is tried again.
func TestFailureShows(t *testing.T) {
	w := Start(t)
	w.Run(namespace.New(w.Cluster))
	Create(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "one"}})
	Create(w, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "one", Name: "a"}})
	w.Server.Fail(func(method string, ref *resourcev1.Ref) error {
		if method == "DeleteCollection" && ref.GetResource() == "secrets" {
			return apierrors.NewForbidden(corev1.Resource("secrets"), "", nil)
		}
		return nil
	})
	Delete[*corev1.Namespace](w, "", "one")
	w.Eventually("the condition", func() bool {
		return condition(Get[*corev1.Namespace](w, "", "one"), corev1.NamespaceDeletionContentFailure).Status == corev1.ConditionTrue
	})
	w.Server.Fail(nil)
	w.Eventually("the namespace is deleted", func() bool { return !Exists[*corev1.Namespace](w, "", "one") })
}
