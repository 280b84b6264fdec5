package statefulset_test

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/controller-manager/internal/history"
	"keelson.dev/services/controller-manager/internal/statefulset"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func set(n int32) *appsv1.StatefulSet {
	labels := map[string]string{"app": "db"}
	zero := int32(0)
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db", UID: "set", Generation: 2},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &n, ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: labels},
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v2"}}},
			},
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
				Type:          appsv1.RollingUpdateStatefulSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &zero},
			},
		},
		Status: appsv1.StatefulSetStatus{CurrentRevision: "old"},
	}
}

func parallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }
func storage(s *appsv1.StatefulSet) {
	s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
}
func partition(n int32) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = &n }
}
func atMost(v string) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) {
		n := intstr.Parse(v)
		s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &n
	}
}

type option func(*corev1.Pod)

func pod(n int, revision string, opts ...option) *corev1.Pod {
	name := "db-" + strconv.Itoa(n)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: "pod", Labels: map[string]string{
				"app": "db", appsv1.StatefulSetRevisionLabel: revision, appsv1.StatefulSetPodNameLabel: name, appsv1.PodIndexLabel: strconv.Itoa(n),
			},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))},
		}},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

func notReady(p *corev1.Pod)  { p.Status.Conditions = nil }
func deleted(p *corev1.Pod)   { t := metav1.NewTime(now); p.DeletionTimestamp = &t }
func failed(p *corev1.Pod)    { p.Status.Phase = corev1.PodFailed }
func justReady(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now) }

func revision(t *testing.T, name, image string, number int64) *appsv1.ControllerRevision {
	template := set(0).Spec.Template
	template.Spec.Containers[0].Image = image
	data, err := history.Data(&template)
	if err != nil {
		t.Fatal(err)
	}
	return &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: runtime.RawExtension{Raw: data}, Revision: number}
}

func plan(t *testing.T, s *appsv1.StatefulSet, claims map[string]*corev1.PersistentVolumeClaim, pods ...*corev1.Pod) statefulset.Actions {
	t.Helper()
	revisions := []*appsv1.ControllerRevision{revision(t, "old", "v1", 1), revision(t, "new", "v2", 2)}
	p, err := statefulset.Plan(s, statefulset.State{
		Pods: pods, Revisions: revisions, Update: revisions[1], Now: now,
		Claim: func(name string) *corev1.PersistentVolumeClaim { return claims[name] },
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func names(pods []*corev1.Pod) []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return out
}

func TestSteps(t *testing.T) {
	type want struct{ create, remove []string }
	for name, c := range map[string]struct {
		size    int32
		options []func(*appsv1.StatefulSet)
		pods    []*corev1.Pod
		want    want
	}{
		"creates the first": {size: 3, want: want{create: []string{"db-0"}}},
		"creates the next when the first is ready": {
			size: 3, pods: []*corev1.Pod{pod(0, "new")}, want: want{create: []string{"db-1"}},
		},
		"waits until the first is ready": {size: 3, pods: []*corev1.Pod{pod(0, "new", notReady)}},
		"waits for a terminating pod":    {size: 3, pods: []*corev1.Pod{pod(0, "new", deleted)}},
		"waits until it is available": {
			size: 3, options: []func(*appsv1.StatefulSet){func(s *appsv1.StatefulSet) { s.Spec.MinReadySeconds = 10 }},
			pods: []*corev1.Pod{pod(0, "new", justReady)},
		},
		"parallel creates all at once": {
			size: 3, options: []func(*appsv1.StatefulSet){parallel}, want: want{create: []string{"db-0", "db-1", "db-2"}},
		},
		"starts at spec.ordinals.start": {
			size: 1, options: []func(*appsv1.StatefulSet){func(s *appsv1.StatefulSet) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5} }},
			want: want{create: []string{"db-5"}},
		},
		"fills a gap":          {size: 3, pods: []*corev1.Pod{pod(0, "new"), pod(2, "new")}, want: want{create: []string{"db-1"}}},
		"deletes a failed pod": {size: 2, pods: []*corev1.Pod{pod(0, "new", failed), pod(1, "new")}, want: want{remove: []string{"db-0"}}},
		"scale-down starts at the highest ordinal": {
			size: 1, pods: []*corev1.Pod{pod(0, "new"), pod(1, "new"), pod(2, "new")}, want: want{remove: []string{"db-2"}},
		},
		"scale-down waits for a terminating pod":  {size: 1, pods: []*corev1.Pod{pod(0, "new"), pod(1, "new"), pod(2, "new", deleted)}},
		"scale-down waits for an unready replica": {size: 1, pods: []*corev1.Pod{pod(0, "new", notReady), pod(1, "new")}},
		"scale-down deletes the only unready pod": {
			size: 1, pods: []*corev1.Pod{pod(0, "new"), pod(1, "new"), pod(2, "new", notReady)}, want: want{remove: []string{"db-2"}},
		},
		"scale-down waits for an unready pod with a lower ordinal": {
			size: 1, pods: []*corev1.Pod{pod(0, "new"), pod(1, "new", notReady), pod(2, "new", notReady)},
		},
		"parallel scales down at once": {
			size: 1, options: []func(*appsv1.StatefulSet){parallel},
			pods: []*corev1.Pod{pod(0, "new"), pod(1, "new", notReady), pod(2, "new")}, want: want{remove: []string{"db-2", "db-1"}},
		},
		"rollout starts at the highest ordinal": {
			size: 3, pods: []*corev1.Pod{pod(0, "old"), pod(1, "old"), pod(2, "old")}, want: want{remove: []string{"db-2"}},
		},
		"rollout continues with the next lower ordinal": {size: 3, pods: []*corev1.Pod{pod(0, "old"), pod(1, "old"), pod(2, "new")}, want: want{remove: []string{"db-1"}}},
		"rollout stops at the partition": {
			size: 3, options: []func(*appsv1.StatefulSet){partition(2)}, pods: []*corev1.Pod{pod(0, "old"), pod(1, "old"), pod(2, "new")},
		},
		"rollout of maxUnavailable pods": {
			size: 3, options: []func(*appsv1.StatefulSet){atMost("2")},
			pods: []*corev1.Pod{pod(0, "old"), pod(1, "old"), pod(2, "old")}, want: want{remove: []string{"db-2", "db-1"}},
		},
		"parallel rollout starts with unavailable pods": {
			size: 3, options: []func(*appsv1.StatefulSet){parallel},
			pods: []*corev1.Pod{pod(0, "old", notReady), pod(1, "old"), pod(2, "old")}, want: want{remove: []string{"db-0"}},
		},
		"OnDelete": {
			size: 1, options: []func(*appsv1.StatefulSet){func(s *appsv1.StatefulSet) {
				s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
			}}, pods: []*corev1.Pod{pod(0, "old")},
		},
		"being deleted": {size: 3, options: []func(*appsv1.StatefulSet){func(s *appsv1.StatefulSet) {
			at := metav1.NewTime(now)
			s.DeletionTimestamp = &at
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := set(c.size)
			for _, o := range c.options {
				o(s)
			}
			p := plan(t, s, nil, c.pods...)
			if got := names(p.Create); !slices.Equal(got, c.want.create) {
				t.Errorf("created pods %v, want %v", got, c.want.create)
			}
			if got := names(p.Delete); !slices.Equal(got, c.want.remove) {
				t.Errorf("deleted pods %v, want %v", got, c.want.remove)
			}
		})
	}
}

func TestPodsBelowThePartitionKeepTheirRevision(t *testing.T) {
	s := set(2)
	partition(1)(s)
	p := plan(t, s, nil)
	if got := p.Create[0]; got.Labels[appsv1.StatefulSetRevisionLabel] != "old" || got.Spec.Containers[0].Image != "v1" {
		t.Errorf("db-0 has revision %s and image %s, want old and v1", got.Labels[appsv1.StatefulSetRevisionLabel], got.Spec.Containers[0].Image)
	}
	p = plan(t, s, nil, pod(0, "old"))
	if got := p.Create[0]; got.Labels[appsv1.StatefulSetRevisionLabel] != "new" || got.Spec.Containers[0].Image != "v2" {
		t.Errorf("db-1 has revision %s, want new", got.Labels[appsv1.StatefulSetRevisionLabel])
	}
}

func TestIdentityAndClaims(t *testing.T) {
	s := set(1)
	storage(s)
	s.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	p := plan(t, s, nil)
	got := p.Create[0]
	if got.Spec.Hostname != "db-0" || got.Spec.Subdomain != "db" || got.GenerateName != "" ||
		got.Labels[appsv1.StatefulSetPodNameLabel] != "db-0" || got.Labels[appsv1.PodIndexLabel] != "0" {
		t.Errorf("pod %+v", got.ObjectMeta)
	}
	if len(got.Spec.Volumes) != 1 || got.Spec.Volumes[0].PersistentVolumeClaim == nil || got.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data-db-0" {
		t.Errorf("volumes %+v", got.Spec.Volumes)
	}
	if len(p.CreateClaims) != 1 || p.CreateClaims[0].Name != "data-db-0" || p.CreateClaims[0].Labels["app"] != "db" || len(p.CreateClaims[0].OwnerReferences) != 0 {
		t.Errorf("claims %+v", p.CreateClaims)
	}
	p = plan(t, s, nil, pod(0, "new", func(p *corev1.Pod) { delete(p.Labels, appsv1.PodIndexLabel) }))
	if got := names(p.Label); !slices.Equal(got, []string{"db-0"}) {
		t.Errorf("pods to label: %v, want db-0", got)
	}
}

func TestClaimsFollowTheRetentionPolicy(t *testing.T) {
	const keep, remove = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	for name, c := range map[string]struct {
		deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType
		want            [2]string // owners of data-db-0, within the set's range, and of data-db-1, outside it
	}{
		"retain":                           {keep, keep, [2]string{"", ""}},
		"delete with the set":              {remove, keep, [2]string{"StatefulSet", "StatefulSet"}},
		"delete when scaled":               {keep, remove, [2]string{"", "Pod"}},
		"delete with the set or the scale": {remove, remove, [2]string{"StatefulSet", "Pod"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := set(1)
			storage(s)
			s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: c.deleted, WhenScaled: c.scaled}
			claims := map[string]*corev1.PersistentVolumeClaim{}
			for _, n := range []string{"data-db-0", "data-db-1"} {
				claims[n] = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: n}}
			}
			owners := map[string]string{}
			for _, claim := range plan(t, s, claims, pod(0, "new"), pod(1, "new")).UpdateClaims {
				for _, ref := range claim.OwnerReferences {
					owners[claim.Name] += ref.Kind
				}
			}
			if got := [2]string{owners["data-db-0"], owners["data-db-1"]}; got != c.want {
				t.Errorf("owners %v, want %v", got, c.want)
			}
		})
	}
	t.Run("waits until the claim of an earlier pod is deleted", func(t *testing.T) {
		s := set(1)
		storage(s)
		claims := map[string]*corev1.PersistentVolumeClaim{"data-db-0": {ObjectMeta: metav1.ObjectMeta{
			Name: "data-db-0", OwnerReferences: []metav1.OwnerReference{{Kind: "Pod", Name: "db-0", UID: "earlier"}},
		}}}
		if p := plan(t, s, claims); len(p.Create) != 0 {
			t.Errorf("created pods %v, want none", names(p.Create))
		}
	})
	// With --cascade=orphan the garbage collector takes the set off the claims' owners. To
	// put it back would delete the claims with the set.
	t.Run("a set that is being deleted leaves its claims alone", func(t *testing.T) {
		s := set(1)
		storage(s)
		at := metav1.NewTime(now)
		s.DeletionTimestamp = &at
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: remove, WhenScaled: keep}
		claims := map[string]*corev1.PersistentVolumeClaim{"data-db-0": {ObjectMeta: metav1.ObjectMeta{Name: "data-db-0"}}}
		if p := plan(t, s, claims, pod(0, "new")); len(p.UpdateClaims) != 0 {
			t.Errorf("updated claims %+v, want none", p.UpdateClaims)
		}
	})
}

func TestStatus(t *testing.T) {
	s := set(3)
	p := plan(t, s, nil, pod(0, "old"), pod(1, "old", notReady), pod(2, "new", deleted))
	st := p.Status
	if st.Replicas != 3 || st.ReadyReplicas != 2 || st.AvailableReplicas != 2 || st.CurrentReplicas != 2 || st.UpdatedReplicas != 0 ||
		st.CurrentRevision != "old" || st.UpdateRevision != "new" || st.ObservedGeneration != 2 {
		t.Errorf("status %+v", st)
	}
	st = plan(t, s, nil, pod(0, "new"), pod(1, "new"), pod(2, "new")).Status
	if st.CurrentRevision != "new" || st.CurrentReplicas != 3 {
		t.Errorf("status after the rollout %+v", st)
	}
	partition(1)(s)
	if st = plan(t, s, nil, pod(0, "new"), pod(1, "new"), pod(2, "new")).Status; st.CurrentRevision != "new" {
		t.Errorf("all pods are updated: current revision %s with a partition, want new", st.CurrentRevision)
	}
	s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	if st = plan(t, s, nil, pod(0, "new"), pod(1, "new"), pod(2, "new")).Status; st.CurrentRevision != "new" {
		t.Errorf("all pods are updated: current revision %s with OnDelete, want new", st.CurrentRevision)
	}
}

// TestRolloutStaysWithinBounds simulates rollouts step by step, with pods that become
// ready and terminate in random order.
func TestRolloutStaysWithinBounds(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		size, limit := int32(1+rng.IntN(6)), 1+rng.IntN(3)
		s := set(size)
		atMost(strconv.Itoa(limit))(s)
		ordered := rng.IntN(2) == 0
		if !ordered {
			parallel(s)
		}
		var pods []*corev1.Pod
		for i := range int(size) {
			pods = append(pods, pod(i, "old"))
		}
		for step := 0; ; step++ {
			if step > 1000 {
				t.Fatalf("seed %d: the rollout does not finish", seed)
			}
			p := plan(t, s, nil, pods...)
			for _, d := range p.Delete {
				deleted(d)
			}
			for _, c := range p.Create {
				if slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.Name == c.Name }) {
					t.Fatalf("seed %d: created a second pod %s", seed, c.Name)
				}
				c.Status.Phase = corev1.PodPending
				pods = append(pods, c)
			}
			serving := 0
			for _, p := range pods {
				if p.DeletionTimestamp == nil && len(p.Status.Conditions) > 0 {
					serving++
				}
			}
			if serving < int(size)-limit {
				t.Fatalf("seed %d: %d of %d pods are ready, but at most %d may be unavailable", seed, serving, size, limit)
			}
			if p.Status.CurrentRevision == "new" && p.Status.ReadyReplicas == size {
				break
			}
			i := rng.IntN(len(pods))
			if q := pods[i]; q.DeletionTimestamp != nil {
				pods = slices.Delete(pods, i, i+1)
			} else if len(q.Status.Conditions) == 0 {
				n, _ := strconv.Atoi(q.Labels[appsv1.PodIndexLabel])
				pods[i] = pod(n, q.Labels[appsv1.StatefulSetRevisionLabel])
			}
		}
	}
}
