package fencing

import (
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
	"keelson.dev/services/internal/fence"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// after is a short promise. With the allowance, pods are deleted after more than 8 s.
const after = 8 * time.Millisecond

// steps is a clock that advances by a step whenever it is read.
type steps struct {
	mu   sync.Mutex
	at   time.Time
	step time.Duration
}

func (s *steps) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.at.Add(s.step)
	return s.at
}

// skip makes an hour pass.
func (s *steps) skip() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.at.Add(time.Hour)
}

func pod(w *World, name, node string) *corev1.Pod {
	p := Create(w, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	})
	if err := client.Bind(w.Context(), w.Client, p, node); err != nil {
		w.Fatal(err)
	}
	return p
}

func lease(w *World, node string, pods ...*corev1.Pod) {
	now := metav1.NewMicroTime(time.Now())
	promise := fence.Promise{After: after}
	for _, p := range pods {
		promise.Pods = append(promise.Pods, p.UID)
	}
	Create(w, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node, Annotations: promise.Put(nil)},
		Spec:       coordinationv1.LeaseSpec{RenewTime: &now},
	})
}

func renew(w *World, node string) {
	Update(w, corev1.NamespaceNodeLease, node, func(l *coordinationv1.Lease) {
		now := metav1.NewMicroTime(time.Now())
		l.Spec.RenewTime = &now
	})
}

func TestDeletesTheNamedPodsOfASilentNode(t *testing.T) {
	w := Start(t)
	clock := &steps{at: time.Now(), step: time.Hour}
	db, other, elsewhere := pod(w, "db-0", "n1"), pod(w, "other", "n1"), pod(w, "db-1", "n2")
	lease(w, "n1", db, elsewhere)
	lease(w, "n3")
	c := newController(w.Cluster.As("fencing-controller"), clock.now)
	w.CatchUp()
	w.Run(c)
	w.Eventually("db-0 is deleted", func() bool { return !Exists[*corev1.Pod](w, "default", "db-0") })
	w.Never("another pod is deleted", func() bool {
		return !Exists[*corev1.Pod](w, "default", other.Name) || !Exists[*corev1.Pod](w, "default", elsewhere.Name)
	})
	// A pod of the same name is another pod.
	pod(w, "db-0", "n1")
	w.CatchUp()
	if _, err := c.Reconcile(w.Context(), client.Key{Name: "n1"}); err != nil {
		t.Error(err)
	}
	w.Never("the new db-0 is deleted", func() bool { return !Exists[*corev1.Pod](w, "default", "db-0") })
}

// TestRenewedLeaseKeepsThePods has a clock that stands still: time passes when the test
// says so.
func TestRenewedLeaseKeepsThePods(t *testing.T) {
	w := Start(t)
	clock := &steps{at: time.Now()}
	db := pod(w, "db-0", "n1")
	lease(w, "n1", db)
	r := newController(w.Cluster.As("fencing-controller"), clock.now)
	w.CatchUp()
	w.Run(r)
	key := client.Key{Name: "n1"}
	for range 3 {
		w.Eventually("the lease is not due", func() bool { return r.Extend(key) > 0 })
		clock.skip()
		if r.Extend(key) > 0 {
			t.Fatal("a lease is not due after an hour")
		}
		renew(w, "n1")
	}
	w.Eventually("the renewed lease is not due", func() bool { return r.Extend(key) > 0 })
	if !Exists[*corev1.Pod](w, "default", "db-0") {
		t.Error("db-0 was deleted")
	}
}

// TestWatchThatLagsDeletesNothing renews a Lease while the watch of Leases is cut.
func TestWatchThatLagsDeletesNothing(t *testing.T) {
	w := Start(t)
	clock := &steps{at: time.Now(), step: time.Hour}
	db := pod(w, "db-0", "n1")
	lease(w, "n1", db)
	c := newController(w.Cluster.As("fencing-controller"), clock.now)
	w.CatchUp()
	reads := make(chan struct{}, 100)
	w.Server.Fail(func(method string, ref *resourcev1.Ref) error {
		if ref.GetResource() != "leases" {
			return nil
		}
		switch method {
		case "Watch", "List":
			return apierrors.NewServiceUnavailable("the watch of leases is cut")
		case "Get":
			select {
			case reads <- struct{}{}:
			default:
			}
		}
		return nil
	})
	w.Server.Cut()
	renew(w, "n1")
	<-reads
	w.Run(c)
	<-reads // the controller has looked
	w.Never("db-0 is deleted", func() bool { return !Exists[*corev1.Pod](w, "default", "db-0") })
	w.Server.Fail(nil)
}
