package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/watchcache"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	podRow         = row.Namespaced[corev1.Pod, corev1.PodList](corev1.SchemeGroupVersion, "pods", "pods")
	roleRow        = row.Cluster[rbacv1.ClusterRole, rbacv1.ClusterRoleList](rbacv1.SchemeGroupVersion, "clusterroles", "clusterroles")
	bindingRow     = row.Cluster[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](rbacv1.SchemeGroupVersion, "clusterrolebindings", "clusterrolebindings")
	roleBindingRow = row.Namespaced[rbacv1.RoleBinding, rbacv1.RoleBindingList](rbacv1.SchemeGroupVersion, "rolebindings", "rolebindings")
	followed       = []*resource.Kind{podRow, roleRow, bindingRow, roleBindingRow}
)

// writer stores objects in the way that the pipeline does.
type writer struct {
	testing.TB
	store store.Store
}

func (w writer) put(k *resource.Kind, o resource.Object) {
	w.Helper()
	b, err := envelope.EncodeObject(envelope.Value{APIVersion: k.GVK.GroupVersion().String(), Kind: k.GVK.Kind}, o)
	if err != nil {
		w.Fatal(err)
	}
	w.commit(store.Write{Key: k.Key(o.GetNamespace(), o.GetName()), Value: b, Expect: store.Any})
}

func (w writer) delete(k *resource.Kind, namespace, name string) {
	w.Helper()
	w.commit(store.Write{Key: k.Key(namespace, name), Expect: store.Any})
}

func (w writer) commit(write store.Write) {
	w.Helper()
	v, err := w.store.Commit(context.Background(), []store.Write{write})
	if err = errors.Join(err, v[0].Err); err != nil {
		w.Fatal(err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		<-time.After(time.Millisecond)
	}
}

// follow follows a store until stop is called. It returns once the current state is known.
func follow(t *testing.T, s store.Store) (z *Authorizers, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	cache := watchcache.New(watchcache.Config{Store: s, Kinds: followed, Buffer: 4, Log: slog.New(slog.DiscardHandler)})
	running := make(chan error, 2)
	go func() { running <- cache.Run(ctx) }()
	<-cache.Ready()
	z = New()
	synced := make(chan struct{})
	go func() { running <- z.Follow(ctx, resource.NewTable(followed...), cache, func() { close(synced) }) }()
	<-synced
	return z, func() {
		cancel()
		for range 2 {
			if err := <-running; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}
}

func TestFollow(t *testing.T) {
	s := memory.New()
	defer s.Close()
	w := writer{t, s}
	w.put(roleRow, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{rule("", "pods", "get")}})
	w.put(bindingRow, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: clusterRole("reader"), Subjects: []rbacv1.Subject{user("early")}})

	ctx := context.Background()
	z, stop := follow(t, s)
	may := func(user, target string) bool {
		ok, _, _ := z.Authorize(ctx, ask(user, "get", target))
		return ok
	}
	if !may("early", "pods") {
		t.Error("rules that existed at the start are missing when synced")
	}
	// Write more at once than a watcher's buffer holds, so that the follower falls behind and has
	// to start over.
	for i := range 200 {
		w.put(roleBindingRow, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("n%d", i), Name: "b"}, RoleRef: clusterRole("reader"), Subjects: []rbacv1.Subject{user("late")},
		})
	}
	for i := range 199 {
		w.delete(roleBindingRow, fmt.Sprintf("n%d", i), "b")
	}
	eventually(t, "the bindings did not take effect", func() bool {
		if !may("late", "n199:pods") {
			return false
		}
		for i := range 199 {
			if may("late", fmt.Sprintf("n%d:pods", i)) {
				return false
			}
		}
		return true
	})

	w.put(podRow, fullPod("p", "here"))
	secret := asNode("here", "get", "n:secrets=volume-secret")
	eventually(t, "the pod did not take effect", func() bool { return allowed(z, secret) })
	w.delete(podRow, "n", "p")
	eventually(t, "the pod's deletion did not take effect", func() bool { return !allowed(z, secret) })

	w.delete(roleRow, "", "reader")
	eventually(t, "the role's deletion did not take effect", func() bool { return !may("early", "pods") })

	stop()
}

// forgetful is a store whose watches end once because their history has been compacted.
type forgetful struct {
	*memory.Store
	forget  context.Context
	watches atomic.Int32
}

type forgetfulWatch struct {
	store.Watch
	forget context.Context
}

func (s *forgetful) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	w, err := s.Store.Watch(ctx, prefix, after)
	s.watches.Add(1)
	if err != nil || s.forget.Err() != nil {
		return w, err
	}
	return &forgetfulWatch{w, s.forget}, nil
}

func (w *forgetfulWatch) Next(ctx context.Context) (store.Batch, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.forget, cancel)()
	b, err := w.Watch.Next(ctx)
	if err != nil && w.forget.Err() != nil {
		err = store.ErrCompacted
	}
	return b, err
}

// TestFollowSurvivesReload checks that rules are still followed after the cache has
// reloaded its state because it could not follow its store for too long, which ends its watches.
func TestFollowSurvivesReload(t *testing.T) {
	forget, forgotten := context.WithCancel(context.Background())
	defer forgotten()
	s := &forgetful{Store: memory.New(), forget: forget}
	defer s.Close()
	w := writer{t, s}
	w.put(roleRow, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{rule("", "pods", "get")}})
	z, stop := follow(t, s)
	forgotten()
	eventually(t, "the cache did not watch again", func() bool { return s.watches.Load() == 2 })
	w.put(bindingRow, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: clusterRole("reader"), Subjects: []rbacv1.Subject{user("late")}})
	eventually(t, "a later change did not take effect", func() bool {
		ok, _, _ := z.Authorize(t.Context(), ask("late", "get", "pods"))
		return ok
	})
	stop()
}
