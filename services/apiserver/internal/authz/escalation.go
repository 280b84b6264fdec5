package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/auth/rbac/validation"

	"keelson.dev/services/apiserver/internal/request"
)

// everything is what a role with an aggregation rule may come to contain.
var everything = []rbacv1.PolicyRule{
	{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}},
	{NonResourceURLs: []string{"*"}, Verbs: []string{"*"}},
}

// CheckRole refuses a Role or ClusterRole (namespace "") with rules that exceed the user's own,
// unless the user may escalate it. aggregates is true if the role has, or had, an aggregation
// rule.
func (z *Authorizers) CheckRole(ctx context.Context, u request.User, namespace, name string, rules []rbacv1.PolicyRule, aggregates bool) error {
	resource := "roles"
	if namespace == "" {
		resource = "clusterroles"
	}
	if Privileged(u) || z.may(ctx, u, "escalate", resource, namespace, name) {
		return nil
	}
	if err := z.covers(u, namespace, rules); err != nil {
		return apierrors.NewForbidden(rbacv1.Resource(resource), name, err)
	}
	if aggregates && z.covers(u, namespace, everything) != nil {
		return apierrors.NewForbidden(rbacv1.Resource(resource), name, errors.New("must have cluster-admin privileges to use the aggregationRule"))
	}
	return nil
}

// CheckBinding refuses a RoleBinding or ClusterRoleBinding (namespace "") to a role with rules
// that exceed the user's own, unless the user may bind the role.
func (z *Authorizers) CheckBinding(ctx context.Context, u request.User, namespace, name string, ref rbacv1.RoleRef) error {
	if Privileged(u) {
		return nil
	}
	bound, resource := "roles", "rolebindings"
	if ref.Kind == "ClusterRole" {
		bound = "clusterroles"
	}
	if namespace == "" {
		resource = "clusterrolebindings"
	}
	if z.may(ctx, u, "bind", bound, namespace, ref.Name) {
		return nil
	}
	rules, err := z.RBAC.RulesOf(ref, namespace)
	if err != nil {
		return apierrors.NewNotFound(rbacv1.Resource(strings.TrimSuffix(bound, "s")), ref.Name)
	}
	if err := z.covers(u, namespace, rules); err != nil {
		return apierrors.NewForbidden(rbacv1.Resource(resource), name, err)
	}
	return nil
}

func (z *Authorizers) may(ctx context.Context, u request.User, verb, resource, namespace, name string) bool {
	allowed, _, err := z.Authorize(ctx, &request.Attributes{
		User: u, Verb: verb, Resource: rbacv1.SchemeGroupVersion.WithResource(resource), Namespace: namespace, Name: name,
	})
	return allowed && err == nil
}

// covers returns nil if the user has all the rules. The error lists the missing ones in
// Kubernetes' words.
func (z *Authorizers) covers(u request.User, namespace string, rules []rbacv1.PolicyRule) error {
	own, unresolved := z.RBAC.RulesFor(u, namespace)
	ok, missing := validation.Covers(own, rules)
	if ok {
		return nil
	}
	message := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		u.Name, u.Groups, strings.Join(describe(missing), "\n"))
	if unresolved != nil {
		message += fmt.Sprintf("; resolution errors: [%v]", unresolved)
	}
	return errors.New(message)
}

// describe formats rules of one verb each as Kubernetes does, with the verbs of the same resource
// combined, in order.
func describe(list []rbacv1.PolicyRule) []string {
	var merged []rbacv1.PolicyRule
	at := make(map[string]int)
	for _, rule := range list {
		if len(rule.NonResourceURLs) == 0 {
			key := fmt.Sprintf("%q %q %q", rule.APIGroups, rule.Resources, rule.ResourceNames)
			if i, ok := at[key]; ok {
				merged[i].Verbs = append(merged[i].Verbs, rule.Verbs...)
				continue
			}
			at[key] = len(merged)
			rule.Verbs = slices.Clone(rule.Verbs)
		}
		merged = append(merged, rule)
	}
	lines := make([]string, 0, len(merged))
	for _, rule := range merged {
		var parts []string
		for _, p := range []struct {
			name   string
			values []string
		}{
			{"APIGroups", rule.APIGroups}, {"Resources", rule.Resources}, {"NonResourceURLs", rule.NonResourceURLs},
			{"ResourceNames", rule.ResourceNames}, {"Verbs", rule.Verbs},
		} {
			if len(p.values) > 0 {
				parts = append(parts, fmt.Sprintf("%s:%q", p.name, p.values))
			}
		}
		lines = append(lines, "{"+strings.Join(parts, ", ")+"}")
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}
