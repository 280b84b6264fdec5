package serviceaccount_test

import (
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/serviceaccount"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEachNamespaceHasOne(t *testing.T) {
	w := Start(t)
	Create(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "one"}})
	w.Run(serviceaccount.New(w.Cluster))
	Create(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "two"}})
	has := func(ns string) func() bool {
		return func() bool { return Exists[*corev1.ServiceAccount](w, ns, "default") }
	}
	w.Eventually("an account in one", has("one"))
	w.Eventually("an account in two", has("two"))
	Delete[*corev1.ServiceAccount](w, "one", "default")
	w.Eventually("a new account", has("one"))
	Delete[*corev1.Namespace](w, "", "two")
	w.Eventually("the end to show", func() bool {
		ns, ok := cluster.Of[*corev1.Namespace](w.Cluster).Get("", "two")
		return ok && ns.DeletionTimestamp != nil
	})
	Delete[*corev1.ServiceAccount](w, "two", "default")
	w.Never("an account in a namespace that is ending", has("two"))
}
