package rootca_test

import (
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/rootca"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEachNamespaceHasIt(t *testing.T) {
	w := Start(t)
	w.Run(rootca.New(w.Cluster, func() []byte { return []byte("pem") }))
	Create(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "one"}})
	right := func() bool {
		return Exists[*corev1.ConfigMap](w, "one", "kube-root-ca.crt") &&
			Get[*corev1.ConfigMap](w, "one", "kube-root-ca.crt").Data["ca.crt"] == "pem"
	}
	w.Eventually("the CA", right)
	Update(w, "one", "kube-root-ca.crt", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"ca.crt": "other"} })
	w.Eventually("the CA again", right)
	Delete[*corev1.ConfigMap](w, "one", "kube-root-ca.crt")
	w.Eventually("the CA once more", right)
}
