package deployment

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func deployment(n int32, image string, surge, unavailable string) *appsv1.Deployment {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	limit, deadline := int32(2), int32(600)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "d", Generation: 3},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			RevisionHistoryLimit: &limit, ProgressDeadlineSeconds: &deadline,
			Template: template(image),
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u},
			},
		},
	}
}

func template(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

// set is a set of a template with so many replicas, of which so many are
// available; revision also makes its age.
func set(d *appsv1.Deployment, image string, rev int, replicas, available int32) *appsv1.ReplicaSet {
	t := template(image)
	t.Labels["pod-template-hash"] = image
	surge, _ := (&rollout{d: d}).bounds()
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "web-" + image, Labels: t.Labels,
			CreationTimestamp: metav1.NewTime(now.Add(time.Duration(rev) * time.Minute)),
			Annotations: map[string]string{
				RevisionAnnotation: fmt.Sprint(rev), desiredAnnotation: fmt.Sprint(*d.Spec.Replicas),
				maxAnnotation: fmt.Sprint(*d.Spec.Replicas + surge),
			},
		},
		Spec:   appsv1.ReplicaSetSpec{Replicas: &replicas, Template: t},
		Status: appsv1.ReplicaSetStatus{Replicas: replicas, ReadyReplicas: available, AvailableReplicas: available},
	}
}

func noPods(*appsv1.ReplicaSet) bool { return false }

// sizes is the replicas that a plan gives each set.
func sizes(p Actions, sets ...*appsv1.ReplicaSet) map[string]int32 {
	out := map[string]int32{}
	for _, rs := range sets {
		out[rs.Name] = *rs.Spec.Replicas
	}
	for _, rs := range p.Update {
		out[rs.Name] = *rs.Spec.Replicas
	}
	if p.Create != nil {
		out["new"] = *p.Create.Spec.Replicas
	}
	return out
}

func TestRolling(t *testing.T) {
	tests := []struct {
		name               string
		replicas           int32
		surge, unavailable string
		old, new           [2]int32 // replicas, available; new of -1 does not exist
		wantOld, wantNew   int32
	}{
		{"first set takes all", 3, "25%", "25%", [2]int32{0, 0}, [2]int32{-1, 0}, 0, 3},
		{"starts with the surge", 4, "25%", "25%", [2]int32{4, 4}, [2]int32{-1, 0}, 3, 1},
		{"surge rounds up, unavailable down", 3, "25%", "25%", [2]int32{3, 3}, [2]int32{-1, 0}, 3, 1},
		{"waits for the new one", 3, "25%", "25%", [2]int32{3, 3}, [2]int32{1, 0}, 3, 1},
		{"goes on when it is available", 3, "25%", "25%", [2]int32{3, 3}, [2]int32{1, 1}, 2, 1},
		{"grows into the room", 3, "25%", "25%", [2]int32{2, 2}, [2]int32{1, 1}, 2, 2},
		{"ends the last old one", 3, "25%", "25%", [2]int32{1, 1}, [2]int32{3, 3}, 0, 3},
		{"without surge first shrinks", 3, "0", "1", [2]int32{3, 3}, [2]int32{-1, 0}, 2, 0},
		{"without surge fills the gap", 3, "0", "1", [2]int32{2, 2}, [2]int32{0, 0}, 2, 1},
		{"neither surge nor unavailable is one unavailable", 3, "0", "0", [2]int32{3, 3}, [2]int32{-1, 0}, 2, 0},
		{"all at once", 3, "100%", "100%", [2]int32{3, 3}, [2]int32{-1, 0}, 0, 3},
		{"unavailable old ones go first", 4, "1", "0", [2]int32{4, 2}, [2]int32{1, 0}, 4, 1},
		{"unavailable old ones go although the new hang", 10, "2", "2", [2]int32{10, 5}, [2]int32{2, 0}, 8, 2},
		{"the new set is too large", 3, "1", "0", [2]int32{0, 0}, [2]int32{5, 5}, 0, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := deployment(tt.replicas, "v2", tt.surge, tt.unavailable)
			sets := []*appsv1.ReplicaSet{set(d, "v1", 1, tt.old[0], tt.old[1])}
			name := "new"
			if tt.new[0] >= 0 {
				sets = append(sets, set(d, "v2", 2, tt.new[0], tt.new[1]))
				name = "web-v2"
			}
			got := sizes(Plan(d, sets, noPods, now), sets...)
			if got["web-v1"] != tt.wantOld || got[name] != tt.wantNew {
				t.Errorf("old %d, new %d; want %d, %d", got["web-v1"], got[name], tt.wantOld, tt.wantNew)
			}
		})
	}
}

// Whatever the sets' pods do, and however late their status comes, a rollout
// keeps to its bounds, and it ends when pods become available.
func TestRollingKeepsItsBounds(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	for round := range 300 {
		n := int32(rng.IntN(12) + 1)
		d := deployment(n, "v3", fmt.Sprintf("%d%%", rng.IntN(101)), fmt.Sprintf("%d%%", rng.IntN(101)))
		surge, unavailable := (&rollout{d: d}).bounds()
		first := int32(rng.IntN(int(n) + 1))
		sets := []*appsv1.ReplicaSet{set(d, "v1", 1, first, first), set(d, "v2", 2, n-first, n-first)}
		// Pods that are really available; status lags behind.
		up := map[string]int32{"web-v1": first, "web-v2": n - first}
		done := false
		for step := 0; step < 2000 && !done; step++ {
			p := Plan(d, sets, noPods, now)
			if p.Create != nil {
				p.Create.CreationTimestamp = metav1.NewTime(now.Add(time.Hour))
				sets = append(sets, p.Create)
			}
			for _, rs := range p.Update {
				for i := range sets {
					if sets[i].Name == rs.Name {
						sets[i] = rs
					}
				}
			}
			var spec, alive int32
			for _, rs := range sets {
				spec += *rs.Spec.Replicas
				up[rs.Name] = min(up[rs.Name], *rs.Spec.Replicas)
				alive += up[rs.Name]
			}
			if spec > n+surge {
				t.Fatalf("round %d: %d replicas of %d + %d", round, spec, n, surge)
			}
			if alive < n-unavailable {
				t.Fatalf("round %d, step %d: %d available of %d - %d", round, step, alive, n, unavailable)
			}
			// Something happens: a pod becomes available, or a status is written.
			rs := sets[rng.IntN(len(sets))]
			if rng.IntN(2) == 0 && up[rs.Name] < *rs.Spec.Replicas {
				up[rs.Name]++
			} else {
				rs.Status = appsv1.ReplicaSetStatus{Replicas: *rs.Spec.Replicas, ReadyReplicas: up[rs.Name], AvailableReplicas: up[rs.Name]}
			}
			newest := sets[len(sets)-1]
			done = len(sets) == 3 && *newest.Spec.Replicas == n && spec == n && newest.Status.AvailableReplicas == n
		}
		if !done {
			t.Fatalf("round %d: the rollout of %d (surge %d, unavailable %d) does not finish", round, n, surge, unavailable)
		}
	}
}

func TestRecreate(t *testing.T) {
	d := deployment(3, "v2", "1", "0")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	old := set(d, "v1", 1, 3, 3)
	p := Plan(d, []*appsv1.ReplicaSet{old}, noPods, now)
	if p.Create != nil || sizes(p, old)["web-v1"] != 0 {
		t.Errorf("first the old ones end: %v", sizes(p, old))
	}
	old = set(d, "v1", 1, 0, 0)
	p = Plan(d, []*appsv1.ReplicaSet{old}, func(*appsv1.ReplicaSet) bool { return true }, now)
	if p.Create != nil {
		t.Error("a new set while an old pod is ending")
	}
	p = Plan(d, []*appsv1.ReplicaSet{old}, noPods, now)
	if p.Create == nil || *p.Create.Spec.Replicas != 3 {
		t.Errorf("then the new ones start: %v", sizes(p, old))
	}
}

func TestScale(t *testing.T) {
	tests := []struct {
		name     string
		from, to int32
		old, new int32
		wantOld  int32
		wantNew  int32
	}{
		{"up in the middle of a rollout", 10, 20, 8, 5, 16, 10},
		{"down in the middle of a rollout", 10, 5, 8, 5, 4, 3},
		{"to none", 10, 0, 8, 5, 0, 0},
		{"only the new one is left", 10, 4, 0, 10, 0, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := deployment(tt.from, "v2", "30%", "30%")
			sets := []*appsv1.ReplicaSet{set(before, "v1", 1, tt.old, tt.old), set(before, "v2", 2, tt.new, tt.new-1)}
			d := deployment(tt.to, "v2", "30%", "30%")
			p := Plan(d, sets, noPods, now)
			got := sizes(p, sets...)
			if got["web-v1"] != tt.wantOld || got["web-v2"] != tt.wantNew {
				t.Errorf("old %d, new %d; want %d, %d", got["web-v1"], got["web-v2"], tt.wantOld, tt.wantNew)
			}
			for _, rs := range p.Update {
				if rs.Annotations[desiredAnnotation] != fmt.Sprint(tt.to) {
					t.Errorf("%s is noted for %s", rs.Name, rs.Annotations[desiredAnnotation])
				}
			}
		})
	}
}

func TestPaused(t *testing.T) {
	d := deployment(3, "v2", "1", "0")
	d.Spec.Paused = true
	old := set(d, "v1", 1, 3, 3)
	p := Plan(d, []*appsv1.ReplicaSet{old}, noPods, now)
	if p.Create != nil || len(p.Update) > 0 {
		t.Error("a paused deployment rolled on")
	}
	if c := condition(&p.Status, appsv1.DeploymentProgressing); c == nil || c.Reason != paused {
		t.Errorf("condition %+v", c)
	}
	bigger := int32(5)
	d.Spec.Replicas = &bigger
	if got := sizes(Plan(d, []*appsv1.ReplicaSet{old}, noPods, now), old)["web-v1"]; got != 5 {
		t.Errorf("a paused deployment scales: %d", got)
	}
}

func TestRevisions(t *testing.T) {
	d := deployment(1, "v1", "1", "0")
	d.Annotations = map[string]string{"note": "x", corev1.LastAppliedConfigAnnotation: "big", RevisionAnnotation: "2"}
	sets := []*appsv1.ReplicaSet{set(d, "v1", 1, 0, 0), set(d, "v2", 2, 1, 1)}
	p := Plan(d, sets, noPods, now)
	if p.Create != nil || p.Revision != "3" {
		t.Fatalf("a restored template has revision %q", p.Revision)
	}
	for _, rs := range p.Update {
		if rs.Name != "web-v1" {
			continue
		}
		if rs.Annotations[RevisionAnnotation] != "3" || rs.Annotations[historyAnnotation] != "1" || rs.Annotations["note"] != "x" {
			t.Errorf("annotations %v", rs.Annotations)
		}
		if _, ok := rs.Annotations[corev1.LastAppliedConfigAnnotation]; ok {
			t.Error("kubectl's annotation was copied")
		}
	}
	again := Plan(d, p.Update, noPods, now)
	if again.Revision != "3" {
		t.Errorf("the revision moved on by itself to %q", again.Revision)
	}
}

func TestHistoryLimit(t *testing.T) {
	d := deployment(1, "v5", "1", "0")
	sets := []*appsv1.ReplicaSet{
		set(d, "v1", 1, 0, 0), set(d, "v2", 2, 0, 0), set(d, "v3", 3, 0, 0), set(d, "v4", 4, 0, 0), set(d, "v5", 5, 1, 1),
	}
	p := Plan(d, sets, noPods, now)
	if len(p.Delete) != 2 || p.Delete[0].Name != "web-v1" || p.Delete[1].Name != "web-v2" {
		t.Errorf("deletes %v", p.Delete)
	}
	if len(p.Update) > 0 || p.Create != nil {
		t.Errorf("nothing else is to be done: %+v", p.Update)
	}
}

func TestStatus(t *testing.T) {
	d := deployment(4, "v2", "1", "1")
	sets := []*appsv1.ReplicaSet{set(d, "v1", 1, 2, 2), set(d, "v2", 2, 3, 1)}
	p := Plan(d, sets, noPods, now)
	s := p.Status
	if s.Replicas != 5 || s.UpdatedReplicas != 3 || s.AvailableReplicas != 3 || s.UnavailableReplicas != 2 || s.ObservedGeneration != 3 {
		t.Errorf("numbers %+v", s)
	}
	if c := condition(&s, appsv1.DeploymentAvailable); c == nil || c.Status != corev1.ConditionTrue {
		t.Errorf("available: %+v", c)
	}
	if c := condition(&s, appsv1.DeploymentProgressing); c == nil || c.Reason != setUpdated {
		t.Errorf("progressing: %+v", c)
	}
	d.Status = s

	// Nothing moves: the deadline is waited for, then passes.
	later := now.Add(5 * time.Minute)
	p = Plan(d, sets, noPods, later)
	if c := condition(&p.Status, appsv1.DeploymentProgressing); c.Reason != setUpdated || c.LastUpdateTime != condition(&s, appsv1.DeploymentProgressing).LastUpdateTime {
		t.Errorf("progressing: %+v", c)
	}
	if p.RequeueAfter != 5*time.Minute+time.Second {
		t.Errorf("requeued after %v", p.RequeueAfter)
	}
	later = now.Add(11 * time.Minute)
	p = Plan(d, sets, noPods, later)
	if c := condition(&p.Status, appsv1.DeploymentProgressing); c.Reason != deadlineExceeded || c.Status != corev1.ConditionFalse {
		t.Errorf("progressing: %+v", c)
	}
	d.Status = p.Status

	// It completes after all.
	sets = []*appsv1.ReplicaSet{set(d, "v1", 1, 0, 0), set(d, "v2", 2, 4, 4)}
	p = Plan(d, sets, noPods, later)
	if c := condition(&p.Status, appsv1.DeploymentProgressing); c.Reason != newSetAvailable || c.Status != corev1.ConditionTrue {
		t.Errorf("progressing: %+v", c)
	}
	d.Status = p.Status
	if again := Plan(d, sets, noPods, later.Add(time.Hour)); len(again.Update) > 0 || again.Create != nil || again.RequeueAfter != 0 {
		t.Errorf("planned more for a complete deployment: %+v", again)
	}

	// A set that cannot create pods shows.
	sets[1].Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "quota"}}
	p = Plan(d, sets, noPods, later)
	if c := condition(&p.Status, appsv1.DeploymentReplicaFailure); c == nil || c.Message != "quota" {
		t.Errorf("failure: %+v", c)
	}
}

func TestTemplateHash(t *testing.T) {
	a, b := template("v1"), template("v1")
	one := int32(1)
	if templateHash(&a, nil) != templateHash(&b, nil) || templateHash(&a, nil) == templateHash(&a, &one) {
		t.Error("the hash is not that of template and collisions")
	}
	b.Labels["pod-template-hash"] = "x"
	if !sameTemplate(&a, &b) {
		t.Error("the hash's own label counts")
	}
	b.Spec.Containers[0].Image = "v2"
	if sameTemplate(&a, &b) {
		t.Error("the image does not count")
	}
}
