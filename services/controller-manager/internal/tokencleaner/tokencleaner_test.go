package tokencleaner

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func token(name, expiration string) *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}, Type: corev1.SecretTypeBootstrapToken,
		Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef")},
	}
	if expiration != "" {
		s.Data["expiration"] = []byte(expiration)
	}
	return s
}

func names(w *testkit.World) (out []string) {
	for _, namespace := range []string{metav1.NamespaceSystem, metav1.NamespaceDefault} {
		for _, s := range testkit.List[*corev1.Secret](w, namespace) {
			out = append(out, s.Name)
		}
	}
	slices.Sort(out)
	return out
}

func TestExpiredTokensGo(t *testing.T) {
	w := testkit.Start(t)
	began := time.Now().Truncate(time.Second)
	at := func(d time.Duration) string { return began.Add(d).Format(time.RFC3339) }
	for _, s := range []*corev1.Secret{
		token("expired", at(0)), token("long-expired", at(-48*time.Hour)), token("unreadable", "tomorrow"),
		token("lasting", ""), token("valid", at(time.Hour)), token("extended", at(time.Hour)),
	} {
		testkit.Create(w, s)
	}
	other := token("not-a-token", at(-time.Hour))
	other.Type = corev1.SecretTypeOpaque
	testkit.Create(w, other)
	elsewhere := token("elsewhere", at(-time.Hour))
	elsewhere.Namespace = metav1.NamespaceDefault
	testkit.Create(w, elsewhere)
	w.CatchUp()

	var now atomic.Int64
	clock := func() time.Time { return began.Add(time.Duration(now.Load())) }
	stop := w.Run(build(w.Cluster, clock))
	left := []string{"elsewhere", "extended", "lasting", "not-a-token", "valid"}
	w.Eventually("expired tokens are gone", func() bool { return slices.Equal(names(w), left) })

	// A token that is extended stays; one that expired while no controller ran goes.
	testkit.Update(w, metav1.NamespaceSystem, "extended", func(s *corev1.Secret) { s.Data["expiration"] = []byte(at(9 * time.Hour)) })
	stop()
	now.Store(int64(2 * time.Hour))
	w.CatchUp()
	w.Run(build(w.Cluster, clock))
	left = []string{"elsewhere", "extended", "lasting", "not-a-token"}
	w.Eventually("the next one is gone", func() bool { return slices.Equal(names(w), left) })

	// One that is changed to have expired goes at once.
	testkit.Update(w, metav1.NamespaceSystem, "extended", func(s *corev1.Secret) { s.Data["expiration"] = []byte(at(time.Hour)) })
	w.Eventually("the changed one is gone", func() bool { return slices.Equal(names(w), []string{"elsewhere", "lasting", "not-a-token"}) })
}

func TestTokensGoWhenTheyExpire(t *testing.T) {
	w := testkit.Start(t)
	w.Run(New(w.Cluster))
	testkit.Create(w, token("short", time.Now().Add(time.Second).Format(time.RFC3339)))
	w.Eventually("it is gone", func() bool { return len(names(w)) == 0 })
}

// The secrets of tokens are not kept in memory.
func TestCacheHoldsNoToken(t *testing.T) {
	w := testkit.Start(t)
	testkit.Create(w, token("valid", ""))
	w.CatchUp()
	s, ok := cluster.Select(w.Cluster, selection).Get(metav1.NamespaceSystem, "valid")
	if !ok || len(s.Data) != 0 {
		t.Errorf("%v, %+v", ok, s)
	}
}
