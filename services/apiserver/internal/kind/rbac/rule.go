package rbac

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/resource"
)

// validateName allows any URL path segment, because names of roles contain colons.
func validateName(name string, prefix bool) []string {
	return pathvalidation.ValidatePathSegmentName(name, prefix)
}

// setCreatedAt sets the only column of roles besides the name.
func setCreatedAt(k *resource.Kind) {
	k.Columns = []metav1.TableColumnDefinition{
		column.New("Created At", "date", column.Doc(metav1.ObjectMeta{}, "creationTimestamp")),
	}
	k.Cells = func(o resource.Object) []any {
		t := o.GetCreationTimestamp()
		return []any{t.UTC().Format("2006-01-02T15:04:05Z")}
	}
}

func validateRules(e *check.Errors, rules []rbacv1.PolicyRule, namespaced bool) {
	for i := range rules {
		r, p := &rules[i], field.NewPath("rules").Index(i)
		if len(r.Verbs) == 0 {
			e.Required(p.Child("verbs"), "")
		}
		if len(r.NonResourceURLs) > 0 {
			if namespaced {
				e.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs")
			}
			if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
				e.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs")
			}
			continue
		}
		if len(r.APIGroups) == 0 {
			e.Required(p.Child("apiGroups"), "resource rules must supply at least one api group")
		}
		if len(r.Resources) == 0 {
			e.Required(p.Child("resources"), "resource rules must supply at least one resource")
		}
	}
}

func defaultSubjects(subjects []rbacv1.Subject) {
	for i := range subjects {
		if s := &subjects[i]; s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = rbacv1.GroupName
		}
	}
}

func defaultRef(r *rbacv1.RoleRef) {
	if r.APIGroup == "" {
		r.APIGroup = rbacv1.GroupName
	}
}

func validateRef(e *check.Errors, r *rbacv1.RoleRef, kinds ...string) {
	p := field.NewPath("roleRef")
	if r.APIGroup != rbacv1.GroupName {
		e.List = append(e.List, field.NotSupported(p.Child("apiGroup"), r.APIGroup, []string{rbacv1.GroupName}))
	}
	check.Supported(e, p, "kind", r.Kind, kinds...)
	if r.Name == "" {
		e.Required(p.Child("name"), "")
		return
	}
	e.Messages(p, "name", r.Name, validateName(r.Name, false))
}

func validateSubjects(e *check.Errors, subjects []rbacv1.Subject, namespaced bool) {
	for i := range subjects {
		s, p := &subjects[i], field.NewPath("subjects").Index(i)
		if s.Name == "" {
			e.Required(p.Child("name"), "")
		}
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			if s.Name != "" {
				e.Messages(p, "name", s.Name, check.Subdomain(s.Name))
			}
			if s.APIGroup != "" {
				e.List = append(e.List, field.NotSupported(p.Child("apiGroup"), s.APIGroup, []string{""}))
			}
			if !namespaced && s.Namespace == "" {
				e.Required(p.Child("namespace"), "")
			}
		case rbacv1.UserKind, rbacv1.GroupKind:
			if s.APIGroup != rbacv1.GroupName {
				e.List = append(e.List, field.NotSupported(p.Child("apiGroup"), s.APIGroup, []string{rbacv1.GroupName}))
			}
		default:
			e.List = append(e.List, field.NotSupported(p.Child("kind"), s.Kind,
				[]string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
		}
	}
}

func bindingColumns(of column.Documented, what string) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column.Text("Role", column.Doc(of, "roleRef")), column.AgeColumn(),
		column.Wide("Users", "Users in the "+what),
		column.Wide("Groups", "Groups in the "+what),
		column.Wide("ServiceAccounts", "ServiceAccounts in the "+what),
	}
}

func bindingCells(ref rbacv1.RoleRef, subjects []rbacv1.Subject, created metav1.Time) []any {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []any{ref.Kind + "/" + ref.Name, column.Age(created), join(users), join(groups), join(accounts)}
}

func join(items []string) string { return strings.Join(items, ", ") }
