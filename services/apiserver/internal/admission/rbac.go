package admission

import (
	"context"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"keelson.dev/services/apiserver/internal/request"
)

// Escalation decides whether a user may grant the rights of a role.
type Escalation interface {
	CheckRole(ctx context.Context, u request.User, namespace, name string, rules []rbacv1.PolicyRule, aggregates bool) error
	CheckBinding(ctx context.Context, u request.User, namespace, name string, ref rbacv1.RoleRef) error
}

// RBAC refuses roles and bindings that would give the user more rights than the user already has.
type RBAC struct{ Escalation Escalation }

// Validate implements Validator.
func (p *RBAC) Validate(ctx context.Context, a *Attributes) error {
	if a.Kind.GVK.Group != rbacv1.GroupName || a.Operation != Create && a.Operation != Update {
		return nil
	}
	switch obj := a.Object.(type) {
	case *rbacv1.Role:
		if old, ok := a.Old.(*rbacv1.Role); ok && equality.Semantic.DeepEqual(obj.Rules, old.Rules) {
			return nil
		}
		return p.Escalation.CheckRole(ctx, a.User, obj.Namespace, obj.Name, obj.Rules, false)
	case *rbacv1.ClusterRole:
		old, ok := a.Old.(*rbacv1.ClusterRole)
		if ok && equality.Semantic.DeepEqual(obj.Rules, old.Rules) && equality.Semantic.DeepEqual(obj.AggregationRule, old.AggregationRule) {
			return nil
		}
		aggregates := obj.AggregationRule != nil || ok && old.AggregationRule != nil
		return p.Escalation.CheckRole(ctx, a.User, "", obj.Name, obj.Rules, aggregates)
	case *rbacv1.RoleBinding:
		if old, ok := a.Old.(*rbacv1.RoleBinding); ok && obj.RoleRef == old.RoleRef && equality.Semantic.DeepEqual(obj.Subjects, old.Subjects) {
			return nil
		}
		return p.Escalation.CheckBinding(ctx, a.User, obj.Namespace, obj.Name, obj.RoleRef)
	case *rbacv1.ClusterRoleBinding:
		if old, ok := a.Old.(*rbacv1.ClusterRoleBinding); ok && obj.RoleRef == old.RoleRef && equality.Semantic.DeepEqual(obj.Subjects, old.Subjects) {
			return nil
		}
		return p.Escalation.CheckBinding(ctx, a.User, "", obj.Name, obj.RoleRef)
	}
	return nil
}
