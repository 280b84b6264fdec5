package authz

import (
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

// TestChanged checks that a change of rules closes Changed's channel, and that nothing else does.
func TestChanged(t *testing.T) {
	r := NewRBAC()
	list := func(verb string) []rbacv1.PolicyRule { return []rbacv1.PolicyRule{rule("", "pods", verb)} }
	for _, step := range []struct {
		name    string
		do      func()
		changes bool
	}{
		{"a new role", func() { r.SetRole("n", "r", list("get")) }, true},
		{"the same role", func() { r.SetRole("n", "r", list("get")) }, false},
		{"another rule", func() { r.SetRole("n", "r", list("list")) }, true},
		{"a new binding", func() { r.SetBinding("n", "b", localRole("r"), []rbacv1.Subject{user("ann")}) }, true},
		{"the same binding", func() { r.SetBinding("n", "b", localRole("r"), []rbacv1.Subject{user("ann")}) }, false},
		{"another subject", func() { r.SetBinding("n", "b", localRole("r"), []rbacv1.Subject{user("bob")}) }, true},
		{"a removed binding", func() { r.RemoveBinding("n", "b") }, true},
		{"a removed role", func() { r.RemoveRole("n", "r") }, true},
	} {
		before := r.Changed()
		step.do()
		changed := false
		select {
		case <-before:
			changed = true
		default:
		}
		if changed != step.changes {
			t.Errorf("%s: changed %t", step.name, changed)
		}
	}
}
