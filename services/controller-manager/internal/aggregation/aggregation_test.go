package aggregation

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/testkit"
)

func role(name string, labels map[string]string, resources ...string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	for _, res := range resources {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{res}, Verbs: []string{"get"}})
	}
	return r
}

func TestRules(t *testing.T) {
	view := role("view", nil)
	view.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
		{MatchLabels: map[string]string{"to": "view"}}, {MatchLabels: map[string]string{"more": "yes"}},
	}}
	got, err := Rules(view, []*rbacv1.ClusterRole{
		role("b", map[string]string{"to": "view"}, "pods", "services"), view,
		role("a", map[string]string{"to": "view"}, "pods"), role("c", nil, "secrets"),
		role("d", map[string]string{"more": "yes"}, "nodes"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range got {
		names = append(names, r.Resources[0])
	}
	testkit.Same(t, "aggregated resources", names, []string{"pods", "services", "nodes"})
}

func TestFollowsItsParts(t *testing.T) {
	w := testkit.Start(t)
	w.Run(New(w.Cluster))
	view := role("view", nil)
	view.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"to": "view"}}}}
	testkit.Create(w, view)
	testkit.Create(w, role("part", map[string]string{"to": "view"}, "pods"))
	w.Eventually("the part's rule", func() bool { return len(testkit.Get[*rbacv1.ClusterRole](w, "", "view").Rules) == 1 })
	testkit.Update(w, "", "part", func(r *rbacv1.ClusterRole) { r.Labels = nil })
	w.Eventually("no rule", func() bool { return len(testkit.Get[*rbacv1.ClusterRole](w, "", "view").Rules) == 0 })
}
