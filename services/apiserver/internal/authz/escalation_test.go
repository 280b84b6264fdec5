package authz

import (
	"context"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/request"
)

func escalationFixture() *Authorizers {
	z := New()
	r := z.RBAC
	pods := rule("", "pods", "get list")
	r.SetRole("", "pods", []rbacv1.PolicyRule{pods})
	r.SetRole("", "secrets", []rbacv1.PolicyRule{rule("", "secrets", "get list watch"), paths("get", "/x")})
	r.SetRole("", "root", everything)
	r.SetRole("", "escalator", []rbacv1.PolicyRule{rule("rbac.authorization.k8s.io", "roles clusterroles", "escalate")})
	r.SetRole("", "binder", []rbacv1.PolicyRule{rule("rbac.authorization.k8s.io", "clusterroles", "bind", "secrets")})
	r.SetBinding("", "1", clusterRole("pods"), []rbacv1.Subject{user("plain"), user("escalator"), user("binder")})
	r.SetBinding("", "2", clusterRole("root"), []rbacv1.Subject{user("root")})
	r.SetBinding("", "3", clusterRole("escalator"), []rbacv1.Subject{user("escalator")})
	r.SetBinding("n", "4", clusterRole("binder"), []rbacv1.Subject{user("binder")})
	return z
}

func TestCheckRole(t *testing.T) {
	z := escalationFixture()
	own, more := []rbacv1.PolicyRule{rule("", "pods", "list")}, []rbacv1.PolicyRule{rule("", "pods secrets", "get list")}
	tests := []struct {
		user, namespace string
		rules           []rbacv1.PolicyRule
		aggregates      bool
		want            string // in the error
	}{
		{"plain", "n", own, false, ""},
		{"plain", "n", more, false, "user \"plain\" (groups=[\"g\"]) is attempting to grant RBAC permissions not currently held:\n" +
			`{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}`},
		{"plain", "", own, true, "must have cluster-admin privileges to use the aggregationRule"},
		{"escalator", "", more, true, ""},
		{"root", "", more, true, ""},
		{"masters", "", more, true, ""},
	}
	for _, tt := range tests {
		u := request.User{Name: tt.user, Groups: []string{"g"}}
		if tt.user == "masters" {
			u.Groups = []string{MastersGroup}
		}
		err := z.CheckRole(context.Background(), u, tt.namespace, "x", tt.rules, tt.aggregates)
		if tt.want == "" && err != nil || tt.want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s in %q: %v, want %q", tt.user, tt.namespace, err, tt.want)
		}
	}
}

func TestCheckBinding(t *testing.T) {
	z := escalationFixture()
	tests := []struct {
		user, namespace, role string
		ok                    bool
		is                    func(error) bool
	}{
		{"plain", "n", "pods", true, nil},
		{"plain", "", "pods", true, nil},
		{"plain", "n", "secrets", false, apierrors.IsForbidden},
		{"plain", "n", "missing", false, apierrors.IsNotFound},
		{"binder", "n", "secrets", true, nil},
		{"binder", "", "secrets", false, apierrors.IsForbidden}, // may bind in namespace n only
		{"binder", "m", "secrets", false, apierrors.IsForbidden},
		{"binder", "n", "root", false, apierrors.IsForbidden},
		{"root", "", "root", true, nil},
	}
	for _, tt := range tests {
		err := z.CheckBinding(context.Background(), request.User{Name: tt.user}, tt.namespace, "x", clusterRole(tt.role))
		if tt.ok != (err == nil) || err != nil && !tt.is(err) {
			t.Errorf("%s binds %s in %q: %v", tt.user, tt.role, tt.namespace, err)
		}
	}
}

func TestAggregate(t *testing.T) {
	labelled := func(name, label string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{label: "true"}}, Rules: rules}
	}
	a, b := rule("", "pods", "get"), rule("apps", "deployments", "get")
	sum := labelled("sum", "to-sum", rule("", "old", "get"))
	sum.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
		{MatchLabels: map[string]string{"to-sum": "true"}}, {MatchLabels: map[string]string{"also": "true"}},
	}}
	all := []*rbacv1.ClusterRole{labelled("z", "also", a), labelled("y", "to-sum", b, a), labelled("x", "elsewhere", rule("", "x", "get")), sum}
	rules, ok, err := Aggregate(sum, all)
	if err != nil || !ok || len(rules) != 2 || rules[0].Resources[0] != "deployments" || rules[1].Resources[0] != "pods" {
		t.Fatal(rules, ok, err)
	}
	if _, ok, _ := Aggregate(all[0], all); ok {
		t.Fatal("a role without aggregation rule was aggregated")
	}
	sum.AggregationRule.ClusterRoleSelectors[0].MatchLabels = map[string]string{"not a label!": "x"}
	if _, _, err := Aggregate(sum, all); err == nil {
		t.Fatal("an invalid selector was accepted")
	}
}
