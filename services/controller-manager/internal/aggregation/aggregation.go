// Package aggregation keeps the rules of aggregated ClusterRoles: a role with an
// aggregationRule has the union of the rules of the roles that its selectors match.
//
// It must never change a role without an aggregationRule.
package aggregation

import (
	"context"
	"fmt"
	"reflect"
	"sort"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	ClusterRoles *client.Cache[*rbacv1.ClusterRole]

	roles client.Resource[*rbacv1.ClusterRole]
}

// New returns the controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{Cluster: s, ClusterRoles: cluster.Of[*rbacv1.ClusterRole](s), roles: client.For[*rbacv1.ClusterRole](s.Client)}
	return controller.Controller{
		Name: "clusterrole-aggregation", Workers: 1, Reconcile: r.reconcile,
		Sources: []controller.Source{controller.From(r.ClusterRoles, r.concerned)},
	}
}

// concerned returns all aggregated roles, because a change of any role may affect any
// of them.
func (r *reconciler) concerned(ev client.Event[*rbacv1.ClusterRole]) []controller.Key {
	keys := []controller.Key{client.KeyOf(ev.Object)}
	for _, role := range r.ClusterRoles.List() {
		if role.AggregationRule != nil && role.Name != ev.Object.Name {
			keys = append(keys, client.KeyOf(role))
		}
	}
	return keys
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	role, ok := r.ClusterRoles.Get("", key.Name)
	if !ok || role.AggregationRule == nil || role.DeletionTimestamp != nil {
		return controller.Result{}, nil
	}
	rules, err := Rules(role, r.ClusterRoles.List())
	if err != nil {
		return controller.Result{}, nil // validation keeps such a selector out.
	}
	if reflect.DeepEqual(rules, role.Rules) || len(rules) == 0 && len(role.Rules) == 0 {
		return controller.Result{}, nil
	}
	next := role.DeepCopy()
	next.Rules = rules
	if _, err := r.roles.Update(ctx, next); err != nil && !apierrors.IsNotFound(err) {
		return controller.Result{}, fmt.Errorf("rules of clusterrole %s: %w", role.Name, err)
	}
	return controller.Result{}, nil
}

// Rules returns the rules that an aggregated role should have: those of the matching
// roles, in order of the roles' names, without duplicates.
func Rules(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	var selectors []labels.Selector
	for i := range role.AggregationRule.ClusterRoleSelectors {
		s, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, err
		}
		selectors = append(selectors, s)
	}
	sorted := append([]*rbacv1.ClusterRole(nil), all...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Name < sorted[j].Name })
	var out []rbacv1.PolicyRule
	for _, s := range selectors {
		for _, other := range sorted {
			if other.Name == role.Name || !s.Matches(labels.Set(other.Labels)) {
				continue
			}
			for _, rule := range other.Rules {
				if !contains(out, rule) {
					out = append(out, *rule.DeepCopy())
				}
			}
		}
	}
	return out, nil
}

func contains(rules []rbacv1.PolicyRule, rule rbacv1.PolicyRule) bool {
	for i := range rules {
		if reflect.DeepEqual(rules[i], rule) {
			return true
		}
	}
	return false
}
