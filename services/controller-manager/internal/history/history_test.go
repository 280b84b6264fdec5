package history_test

import (
	"errors"
	"slices"
	"testing"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/history"
	"keelson.dev/services/controller-manager/internal/owner"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
	"keelson.dev/services/internal/controller"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func set(image string) *appsv1.StatefulSet {
	labels := map[string]string{"app": "db"}
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "db", UID: "u",
			Annotations: map[string]string{"kubernetes.io/change-cause": "why", corev1.LastAppliedConfigAnnotation: "{}"},
		},
		Spec: appsv1.StatefulSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
			},
		},
	}
}

func plan(t *testing.T, s *appsv1.StatefulSet, revisions ...*appsv1.ControllerRevision) history.Actions {
	t.Helper()
	p, err := history.Plan(s, &s.Spec.Template, revisions, history.HashLabel, s.Status.CollisionCount)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// revisions returns one revision for each image, numbered from 1.
func revisions(t *testing.T, images ...string) (out []*appsv1.ControllerRevision) {
	t.Helper()
	for _, image := range images {
		p := plan(t, set(image), out...)
		if p.Create == nil {
			t.Fatalf("image %s is not new", image)
		}
		out = append(out, p.Create)
	}
	return out
}

func TestNewTemplateGetsTheNextNumber(t *testing.T) {
	old := revisions(t, "v1", "v2")
	p := plan(t, set("v3"), old[1], old[0])
	r := p.Create
	if r == nil || p.Current != r || p.Renumber != nil || r.Revision != 3 {
		t.Fatalf("plan %+v", p)
	}
	if ref := metav1.GetControllerOf(r); ref == nil || ref.UID != "u" || ref.Kind != "StatefulSet" || ref.APIVersion != "apps/v1" {
		t.Errorf("controller %+v", ref)
	}
	if r.Name != "db-"+history.Hash(r) || r.Labels["app"] != "db" || len(r.Annotations) != 1 || r.Annotations["kubernetes.io/change-cause"] != "why" {
		t.Errorf("metadata %+v", r.ObjectMeta)
	}
	template, err := history.Template(r)
	if err != nil || template.Spec.Containers[0].Image != "v3" {
		t.Errorf("restores %+v, error %v", template, err)
	}
	if p := plan(t, set("v3"), append(old, r)...); p.Current != r || p.Create != nil || p.Renumber != nil {
		t.Errorf("plan for the current template: %+v", p)
	}
}

func TestReturnToAnEarlierTemplateRenumbers(t *testing.T) {
	old := revisions(t, "v1", "v2", "v3")
	p := plan(t, set("v1"), old...)
	if p.Renumber == nil || p.Renumber.Name != old[0].Name || p.Renumber.Revision != 4 || p.Create != nil || p.Current != p.Renumber {
		t.Fatalf("plan %+v", p)
	}
	if old[0].Revision != 1 {
		t.Error("the cached revision was changed")
	}
	// Other writers order fields differently, and store null for unset times.
	foreign := old[0].DeepCopy()
	foreign.Name, foreign.Revision = "db-foreign", 9
	foreign.Data = runtime.RawExtension{Raw: []byte(`{"spec":{"template":{"spec":{"containers":[{"resources":{},"image":"v1","name":"c"}]},"metadata":{"creationTimestamp":null,"labels":{"app":"db"}},"$patch":"replace"}}}`)}
	if p := plan(t, set("v1"), append(old, foreign)...); p.Current != foreign {
		t.Errorf("current revision %s, want the newest with the same template", p.Current.Name)
	}
}

func TestCollisionCountChangesTheName(t *testing.T) {
	s := set("v1")
	first := plan(t, s).Create.Name
	s.Status.CollisionCount = history.Collided(nil)
	second := plan(t, s).Create.Name
	s.Status.CollisionCount = history.Collided(s.Status.CollisionCount)
	if third := plan(t, s).Create.Name; *s.Status.CollisionCount != 2 || first == second || second == third {
		t.Errorf("names %s, %s, %s after %d collisions", first, second, third, *s.Status.CollisionCount)
	}
}

func TestLongNamesLeaveRoomForTheHash(t *testing.T) {
	s := set("v1")
	for len(s.Name) < 253 {
		s.Name += "x"
	}
	if name := plan(t, s).Create.Name; len(name) > 253 {
		t.Errorf("the revision's name has %d characters", len(name))
	}
}

func TestSurplusIsTheOldestThatIsNotInUse(t *testing.T) {
	all := revisions(t, "v1", "v2", "v3", "v4", "v5")
	deleted := metav1.Now()
	all[2].DeletionTimestamp = &deleted
	live := func(r *appsv1.ControllerRevision) bool { return r.Revision == 1 || r.Revision == 5 }
	for limit, want := range map[int32][]int64{0: {2, 4}, 1: {2}, 2: nil, 10: nil} {
		var got []int64
		for _, r := range history.Surplus([]*appsv1.ControllerRevision{all[4], all[1], all[3], all[0], all[2]}, &limit, live) {
			got = append(got, r.Revision)
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: deletes %v, want %v", limit, got, want)
		}
	}
	if got := history.Surplus(all, nil, live); got != nil {
		t.Errorf("no limit: deletes %d", len(got))
	}
}

func TestSortedBreaksTies(t *testing.T) {
	at := func(seconds int64, name string) *appsv1.ControllerRevision {
		return &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(seconds, 0)}, Revision: 1}
	}
	got := ""
	for _, r := range history.Sorted([]*appsv1.ControllerRevision{at(2, "c"), at(1, "b"), at(2, "a")}) {
		got += r.Name
	}
	if got != "bac" {
		t.Errorf("order %s, want b by age, then a and c by name", got)
	}
}

// TestReviserOnAServer writes revisions of a set, with an object of another owner in the
// way of the first.
func TestReviserOnAServer(t *testing.T) {
	w := Start(t)
	sets := cluster.Of[*appsv1.StatefulSet](w.Cluster, cluster.ByNamespace)
	r := history.Reviser[*appsv1.StatefulSet]{
		Label: history.HashLabel,
		Revisions: owner.NewClaimer[*appsv1.StatefulSet, *appsv1.ControllerRevision](w.Cluster, func(s *appsv1.StatefulSet) *metav1.LabelSelector {
			return s.Spec.Selector
		}),
		Owners: client.For[*appsv1.StatefulSet](w.Client), Writes: controller.NewWrites(sets),
		Parts: func(s *appsv1.StatefulSet) (*corev1.PodTemplateSpec, **int32) {
			return &s.Spec.Template, &s.Status.CollisionCount
		},
	}
	s := set("v1")
	s.UID = ""
	s = Create(w, s)
	foreign := plan(t, s).Create
	foreign.OwnerReferences[0].UID = types.UID("another")
	Create(w, foreign)

	if _, err := r.Revise(w.Context(), s, nil); !errors.Is(err, controller.ErrStale) {
		t.Fatalf("collision: error %v, want ErrStale", err)
	}
	s = Get[*appsv1.StatefulSet](w, "default", "db")
	if c := s.Status.CollisionCount; c == nil || *c != 1 {
		t.Fatalf("collisionCount %v, want 1", c)
	}
	first, err := r.Revise(w.Context(), s, nil)
	if err != nil || first.Name == foreign.Name || first.Revision != 1 {
		t.Fatalf("first revision %+v, error %v", first, err)
	}
	// An earlier attempt wrote the revision, and the caller has not seen it yet.
	w.CatchUp()
	if again, err := r.Revise(w.Context(), s, nil); err != nil || again.UID != first.UID {
		t.Errorf("second attempt: %+v, error %v", again, err)
	}
	s.Spec.Template.Spec.Containers[0].Image = "v2"
	second, err := r.Revise(w.Context(), s, []*appsv1.ControllerRevision{first})
	if err != nil || second.Revision != 2 {
		t.Fatalf("second revision %+v, error %v", second, err)
	}
	s.Spec.Template.Spec.Containers[0].Image = "v1"
	back, err := r.Revise(w.Context(), s, []*appsv1.ControllerRevision{first, second})
	if err != nil || back.Name != first.Name || back.Revision != 3 {
		t.Errorf("after the return: %+v, error %v", back, err)
	}
	if got, err := r.Revise(w.Context(), s, []*appsv1.ControllerRevision{second, back}); err != nil || got.ResourceVersion != back.ResourceVersion {
		t.Errorf("nothing has changed: %+v, error %v", got, err)
	}
	deleted := metav1.Now()
	s.DeletionTimestamp = &deleted
	s.Spec.Template.Spec.Containers[0].Image = "v9"
	if _, err := r.Revise(w.Context(), s, []*appsv1.ControllerRevision{second, back}); err != nil {
		t.Error(err)
	}
	if n := len(List[*appsv1.ControllerRevision](w, "default")); n != 3 {
		t.Errorf("%d revisions, want no new one for a set that is being deleted", n)
	}
}
