package garbage_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/garbage"
	"keelson.dev/services/controller-manager/internal/owner"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs the collector.
func start(t *testing.T) *World {
	w := Start(t)
	w.Run(garbage.New(w.Cluster))
	return w
}

func meta(name string, owners ...client.Object) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: "default", Name: name}
	for i, o := range owners {
		ref := owner.Reference(o)
		if i > 0 {
			ref.Controller = nil
		}
		m.OwnerReferences = append(m.OwnerReferences, ref)
	}
	return m
}

func configMap(w *World, name string, owners ...client.Object) *corev1.ConfigMap {
	return Create(w, &corev1.ConfigMap{ObjectMeta: meta(name, owners...)})
}

func gone[T client.Object](w *World, name string) func() bool {
	return func() bool { return !Exists[T](w, "default", name) }
}

// chain is a deployment, its set and its set's pod.
func chain(w *World) (*appsv1.Deployment, *appsv1.ReplicaSet, *corev1.Pod) {
	d := Create(w, &appsv1.Deployment{ObjectMeta: meta("d")})
	rs := Create(w, &appsv1.ReplicaSet{ObjectMeta: meta("rs", d)})
	p := Create(w, &corev1.Pod{ObjectMeta: meta("p", rs)})
	w.CatchUp()
	return d, rs, p
}

func TestBackground(t *testing.T) {
	w := start(t)
	chain(w)
	Delete[*appsv1.Deployment](w, "default", "d", client.Propagation(metav1.DeletePropagationBackground))
	w.Eventually("the set is deleted", gone[*appsv1.ReplicaSet](w, "rs"))
	w.Eventually("the pod is deleted", gone[*corev1.Pod](w, "p"))
}

func TestForeground(t *testing.T) {
	w := start(t)
	_, _, p := chain(w)
	Update(w, "default", p.Name, func(p *corev1.Pod) { p.Finalizers = []string{"example.com/hold"} })
	Delete[*appsv1.Deployment](w, "default", "d", client.Propagation(metav1.DeletePropagationForeground))
	w.Eventually("the pod is being deleted", func() bool { return Get[*corev1.Pod](w, "default", "p").DeletionTimestamp != nil })
	w.Never("the owner goes before its dependents", gone[*appsv1.Deployment](w, "d"))
	if !Exists[*appsv1.ReplicaSet](w, "default", "rs") {
		t.Error("the set was deleted before its pod")
	}
	Update(w, "default", "p", func(p *corev1.Pod) { p.Finalizers = nil })
	w.Eventually("the set is deleted", gone[*appsv1.ReplicaSet](w, "rs"))
	w.Eventually("the deployment is deleted", gone[*appsv1.Deployment](w, "d"))
}

func TestOrphan(t *testing.T) {
	w := start(t)
	chain(w)
	Delete[*appsv1.Deployment](w, "default", "d", client.Propagation(metav1.DeletePropagationOrphan))
	w.Eventually("the deployment is deleted", gone[*appsv1.Deployment](w, "d"))
	w.Eventually("the set has no owner", func() bool {
		return len(Get[*appsv1.ReplicaSet](w, "default", "rs").OwnerReferences) == 0
	})
	w.Never("the set or the pod goes", func() bool { return gone[*appsv1.ReplicaSet](w, "rs")() || gone[*corev1.Pod](w, "p")() })
}

// An object goes with its last owner, and loses references to those that went
// before.
func TestSeveralOwners(t *testing.T) {
	w := start(t)
	a, b := configMap(w, "a"), configMap(w, "b")
	configMap(w, "c", a, b)
	Delete[*corev1.ConfigMap](w, "default", "a")
	w.Eventually("the reference is removed", func() bool {
		refs := Get[*corev1.ConfigMap](w, "default", "c").OwnerReferences
		return len(refs) == 1 && refs[0].UID == b.UID
	})
	Delete[*corev1.ConfigMap](w, "default", "b")
	w.Eventually("the object is deleted", gone[*corev1.ConfigMap](w, "c"))
}

// Owners that never existed, or whose name another object has now, do not keep their
// dependents. Owners of unknown kinds do.
func TestOwnersThatAreNot(t *testing.T) {
	w := start(t)
	a := configMap(w, "a")
	ghost := a.DeepCopy()
	ghost.UID = "ghost"
	configMap(w, "haunted", ghost)
	w.Eventually("the object of an owner that never existed is deleted", gone[*corev1.ConfigMap](w, "haunted"))

	other := a.DeepCopy()
	other.Name = "elsewhere"
	configMap(w, "mistaken", other)
	w.Eventually("the object with the wrong uid is deleted", gone[*corev1.ConfigMap](w, "mistaken"))

	m := meta("foreign")
	m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Widget", Name: "w", UID: "w"}}
	Create(w, &corev1.ConfigMap{ObjectMeta: m})
	crossed := a.DeepCopy()
	Create(w, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "crossed", OwnerReferences: meta("", crossed).OwnerReferences}})
	w.Eventually("an object whose owner is in another namespace is deleted", func() bool { return !Exists[*corev1.ConfigMap](w, "elsewhere", "crossed") })
	w.Never("the object of an unknown kind goes", gone[*corev1.ConfigMap](w, "foreign"))
	cluster := meta("node-like", a)
	cluster.Namespace = ""
	Create(w, &corev1.Node{ObjectMeta: cluster})
	w.Never("a cluster's object of a namespaced owner goes", func() bool { return !Exists[*corev1.Node](w, "", "node-like") })
}

// Kinds that no controller needs are collected like all others, and an owner that is
// deleted in the foreground waits for them.
func TestLeasesAndClasses(t *testing.T) {
	w := start(t)
	owner := configMap(w, "owner")
	m := meta("held", owner)
	yes := true
	m.OwnerReferences[0].BlockOwnerDeletion = &yes
	Create(w, &coordinationv1.Lease{ObjectMeta: m})
	Delete[*corev1.ConfigMap](w, "default", "owner", client.Propagation(metav1.DeletePropagationForeground))
	w.Eventually("the owner is deleted", gone[*corev1.ConfigMap](w, "owner"))
	if Exists[*coordinationv1.Lease](w, "default", "held") {
		t.Error("the owner was deleted before the lease that blocks it")
	}

	role := Create(w, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "owner"}})
	m = meta("owned", role)
	m.Namespace = ""
	Create(w, &schedulingv1.PriorityClass{ObjectMeta: m, Value: 7})
	Delete[*rbacv1.ClusterRole](w, "", "owner")
	w.Eventually("the class is deleted", func() bool { return !Exists[*schedulingv1.PriorityClass](w, "", "owned") })
}

// A reference to an owner in another namespace is reported in one event.
func TestOwnerInOtherNamespace(t *testing.T) {
	w := start(t)
	owner := configMap(w, "owner")
	wide := meta("wide", owner)
	wide.Namespace = ""
	Create(w, &rbacv1.ClusterRole{ObjectMeta: wide})
	Create(w, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "lost", OwnerReferences: meta("", owner).OwnerReferences}})
	w.Eventually("the dependent is deleted", func() bool { return !Exists[*corev1.ConfigMap](w, "elsewhere", "lost") })
	for name, namespace := range map[string]string{"lost": "elsewhere", "wide": ""} {
		want := fmt.Sprintf("ownerRef [v1/ConfigMap, namespace: %s, name: owner, uid: %s] does not exist in namespace %q", namespace, owner.UID, namespace)
		at := namespace
		if at == "" {
			at = "default"
		}
		w.Eventually("an event about "+name, func() bool {
			return slices.ContainsFunc(List[*corev1.Event](w, at), func(e *corev1.Event) bool {
				return e.InvolvedObject.Name == name && e.Reason == "OwnerRefInvalidNamespace" && e.Type == corev1.EventTypeWarning && e.Message == want
			})
		})
	}
	Update(w, "", "wide", func(r *rbacv1.ClusterRole) { r.Labels = map[string]string{"a": "b"} })
	w.Never("there is another event, or the owner goes", func() bool {
		n := 0
		for _, e := range List[*corev1.Event](w, "default") {
			if e.InvolvedObject.Name == "wide" {
				n += int(max(e.Count, 1))
			}
		}
		return n != 1 || gone[*corev1.ConfigMap](w, "owner")()
	})
}

// Two objects that own each other are deleted once one of them is.
func TestCycle(t *testing.T) {
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground} {
		t.Run(string(policy), func(t *testing.T) {
			w := start(t)
			a := configMap(w, "a")
			b := configMap(w, "b", a)
			Update(w, "default", "a", func(cm *corev1.ConfigMap) { cm.OwnerReferences = meta("", b).OwnerReferences })
			w.Never("anything goes by itself", func() bool { return gone[*corev1.ConfigMap](w, "a")() || gone[*corev1.ConfigMap](w, "b")() })
			Delete[*corev1.ConfigMap](w, "default", "a", client.Propagation(policy))
			w.Eventually("a is deleted", gone[*corev1.ConfigMap](w, "a"))
			w.Eventually("b is deleted", gone[*corev1.ConfigMap](w, "b"))
		})
	}
}

// An object that lost its owner while no collector ran is found at the start. One that
// has an owner is not touched.
func TestStart(t *testing.T) {
	w := Start(t)
	a, b := configMap(w, "a"), configMap(w, "b")
	for i := range 50 {
		configMap(w, fmt.Sprintf("of-a-%d", i), a)
		configMap(w, fmt.Sprintf("of-b-%d", i), b)
	}
	Delete[*corev1.ConfigMap](w, "default", "a")
	w.Run(garbage.New(w.Cluster))
	w.Eventually("the objects without an owner are deleted", func() bool { return len(List[*corev1.ConfigMap](w, "default")) == 51 })
	w.Never("more goes", func() bool { return len(List[*corev1.ConfigMap](w, "default")) != 51 })
}

// In a random forest, exactly the descendants of the deleted roots are deleted.
func TestRandomForest(t *testing.T) {
	w := start(t)
	rng := rand.New(rand.NewPCG(1, 9))
	var all []*corev1.ConfigMap
	owners := map[types.UID][]types.UID{}
	for i := range 150 {
		var up []client.Object
		if i >= 10 {
			for range 1 + rng.IntN(2) {
				o := all[rng.IntN(len(all))]
				if len(up) == 0 || up[0].GetUID() != o.UID {
					up = append(up, o)
				}
			}
		}
		cm := configMap(w, fmt.Sprintf("n%d", i), up...)
		for _, o := range up {
			owners[cm.UID] = append(owners[cm.UID], o.GetUID())
		}
		all = append(all, cm)
	}
	dead := map[types.UID]bool{}
	for i := range 5 {
		dead[all[i].UID] = true
		Delete[*corev1.ConfigMap](w, "default", all[i].Name)
	}
	want := 0
	for _, cm := range all { // in the order of creation: owners first.
		if up := owners[cm.UID]; len(up) > 0 {
			lost := true
			for _, o := range up {
				lost = lost && dead[o]
			}
			dead[cm.UID] = lost
		}
		if !dead[cm.UID] {
			want++
		}
	}
	w.Eventually("the rest is left", func() bool { return len(List[*corev1.ConfigMap](w, "default")) == want })
	w.Never("more goes", func() bool { return len(List[*corev1.ConfigMap](w, "default")) != want })
	for _, cm := range List[*corev1.ConfigMap](w, "default") {
		if dead[cm.UID] {
			t.Errorf("%s was not deleted", cm.Name)
		}
	}
}
