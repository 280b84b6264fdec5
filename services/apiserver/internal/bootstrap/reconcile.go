package bootstrap

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/auth/rbac/validation"

	"keelson.dev/services/apiserver/internal/resource"
)

// action is what has to be done with an existing object.
type action uint8

const (
	keep action = iota
	change
	// replace deletes and recreates the object, because the changed field is immutable.
	replace
)

// reconcile returns what an existing object must become to include everything that is desired. It
// never modifies have.
func reconcile(want, have resource.Object) (resource.Object, action) {
	switch want := want.(type) {
	case *rbacv1.ClusterRole:
		return reconcileClusterRole(want, have.(*rbacv1.ClusterRole))
	case *rbacv1.Role:
		next := have.(*rbacv1.Role).DeepCopy()
		if !mergeMeta(&next.ObjectMeta, want.ObjectMeta) {
			return nil, keep
		}
		next.Rules = withRules(next.Rules, want.Rules)
		return next, changed(next, have)
	case *rbacv1.ClusterRoleBinding:
		next := have.(*rbacv1.ClusterRoleBinding).DeepCopy()
		if !mergeMeta(&next.ObjectMeta, want.ObjectMeta) {
			return nil, keep
		}
		if next.RoleRef != want.RoleRef {
			return want, replace
		}
		next.Subjects = withSubjects(without(next.Subjects, withdrawn[want.Name]), want.Subjects)
		return next, changed(next, have)
	case *rbacv1.RoleBinding:
		next := have.(*rbacv1.RoleBinding).DeepCopy()
		if !mergeMeta(&next.ObjectMeta, want.ObjectMeta) {
			return nil, keep
		}
		if next.RoleRef != want.RoleRef {
			return want, replace
		}
		next.Subjects = withSubjects(next.Subjects, want.Subjects)
		return next, changed(next, have)
	case *corev1.ConfigMap:
		next := have.(*corev1.ConfigMap).DeepCopy()
		next.Data = merged(want.Data, next.Data, true)
		return next, changed(next, have)
	}
	return nil, keep // an existing object of any other kind is sufficient
}

func reconcileClusterRole(want, have *rbacv1.ClusterRole) (resource.Object, action) {
	next := have.DeepCopy()
	if !mergeMeta(&next.ObjectMeta, want.ObjectMeta) {
		return nil, keep
	}
	switch {
	case want.AggregationRule == nil:
		if next.AggregationRule == nil {
			next.Rules = withRules(next.Rules, want.Rules)
		}
	case next.AggregationRule == nil:
		next.AggregationRule, next.Rules = want.AggregationRule, want.Rules
	default:
		// The aggregation controller owns its rules; what they lack comes from new default roles.
		for _, s := range want.AggregationRule.ClusterRoleSelectors {
			if !slices.ContainsFunc(next.AggregationRule.ClusterRoleSelectors, func(h metav1.LabelSelector) bool { return equality.Semantic.DeepEqual(h, s) }) {
				next.AggregationRule.ClusterRoleSelectors = append(next.AggregationRule.ClusterRoleSelectors, s)
			}
		}
		next.Rules = withRules(next.Rules, want.Rules)
	}
	return next, changed(next, have)
}

// mergeMeta adds missing labels and annotations. It returns false if the object opts out of
// updates.
func mergeMeta(next *metav1.ObjectMeta, want metav1.ObjectMeta) bool {
	if next.Annotations[rbacv1.AutoUpdateAnnotationKey] == "false" {
		return false
	}
	next.Labels = merged(want.Labels, next.Labels, false)
	next.Annotations = merged(want.Annotations, next.Annotations, false)
	return true
}

// merged returns have with the missing keys of want. If wins is true, want's values replace
// have's.
func merged(want, have map[string]string, wins bool) map[string]string {
	m := maps.Clone(have)
	for k, v := range want {
		if _, ok := m[k]; ok && !wins {
			continue
		}
		if m == nil {
			m = make(map[string]string, len(want))
		}
		m[k] = v
	}
	return m
}

// withRules adds the rules that have does not cover.
func withRules(have, want []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	for _, r := range want {
		if ok, _ := validation.Covers(have, []rbacv1.PolicyRule{r}); !ok {
			have = append(have, r)
		}
	}
	return have
}

// withdrawn lists, by default binding, subjects that earlier versions bound: with them, every
// bootstrap token could create nodes, whatever it was for.
var withdrawn = map[string][]rbacv1.Subject{
	"keelson:node-bootstrapper":          {allBootstrappers},
	"keelson:node-autoapprove-bootstrap": {allBootstrappers},
}

var allBootstrappers = rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:bootstrappers"}

func without(have, gone []rbacv1.Subject) []rbacv1.Subject {
	return slices.DeleteFunc(have, func(s rbacv1.Subject) bool { return slices.Contains(gone, s) })
}

func withSubjects(have, want []rbacv1.Subject) []rbacv1.Subject {
	for _, s := range want {
		if !slices.Contains(have, s) {
			have = append(have, s)
		}
	}
	return have
}

func changed(next, have resource.Object) action {
	if equality.Semantic.DeepEqual(next, have) {
		return keep
	}
	return change
}
