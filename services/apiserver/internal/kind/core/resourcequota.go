package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ResourceQuota returns the row of resourcequotas.
func ResourceQuota() *resource.Kind {
	k := row.Namespaced[corev1.ResourceQuota, corev1.ResourceQuotaList](corev1.SchemeGroupVersion, "resourcequotas", "resourcequotas")
	k.ShortNames = []string{"quota"}
	k.NoGeneration = true
	k.ReturnsDeleted = true
	k.Columns, k.Cells = quotaColumns(), quotaCells
	k.Rules = resource.Typed[*corev1.ResourceQuota]{
		Default:       defaultQuota,
		PrepareCreate: func(q *corev1.ResourceQuota) { q.Status = corev1.ResourceQuotaStatus{} },
		PrepareUpdate: func(q, old *corev1.ResourceQuota) { q.Status = old.Status },
		Warnings: func(q, old *corev1.ResourceQuota) []string {
			if old != nil {
				return nil
			}
			return quotaWarnings(&q.Spec)
		},
		Validate:       func(q *corev1.ResourceQuota) field.ErrorList { return validateQuota(&q.Spec) },
		ValidateUpdate: validateQuotaUpdate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*corev1.ResourceQuota]{
			Default:        defaultQuota,
			PrepareUpdate:  func(q, old *corev1.ResourceQuota) { q.Spec = old.Spec },
			ValidateUpdate: validateQuotaStatus,
		}.Rules()),
	}
	return k
}

func defaultQuota(q *corev1.ResourceQuota) {
	podspec.DefaultResources(q.Spec.Hard)
	podspec.DefaultResources(q.Status.Hard)
	podspec.DefaultResources(q.Status.Used)
}

// quotaWarnings warns if a quota allows a higher total of requests than of limits.
func quotaWarnings(s *corev1.ResourceQuotaSpec) []string {
	var list []string
	for _, name := range []corev1.ResourceName{
		corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceStorage, corev1.ResourceEphemeralStorage,
	} {
		requestName, limitName := "requests."+name, "limits."+name
		request, ok := s.Hard[requestName]
		if !ok && (name == corev1.ResourceCPU || name == corev1.ResourceMemory) {
			requestName = name
			request, ok = s.Hard[name]
		}
		if limit, both := s.Hard[limitName]; ok && both && request.Cmp(limit) > 0 {
			list = append(list, fmt.Sprintf("ResourceQuota %s (%s) should be less than %s (%s)",
				requestName, request.String(), limitName, limit.String()))
		}
	}
	return list
}

func validateQuota(s *corev1.ResourceQuotaSpec) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	for name, q := range s.Hard {
		podspec.ValidateQuotaResource(&e, name, q, p.Child("hard").Key(string(name)))
	}
	at := p.Child("scopes")
	for _, scope := range s.Scopes {
		if !knownScope(scope) {
			e.Invalid(at, s.Scopes, "unsupported scope")
		}
		if !scopeFits(scope, s.Hard) {
			e.Invalid(at, s.Scopes, "unsupported scope applied to resource")
		}
	}
	if contradict(s.Scopes) {
		e.Invalid(at, s.Scopes, "conflicting scopes")
	}
	if s.ScopeSelector != nil {
		validateScopeSelector(&e, s, p.Child("scopeSelector", "matchExpressions"))
	}
	return e.List
}

func validateScopeSelector(e *check.Errors, s *corev1.ResourceQuotaSpec, p *field.Path) {
	var scopes []corev1.ResourceQuotaScope
	for _, r := range s.ScopeSelector.MatchExpressions {
		if !knownScope(r.ScopeName) {
			e.Invalid(p.Child("scopeName"), r.ScopeName, "unsupported scope")
		}
		if !scopeFits(r.ScopeName, s.Hard) {
			e.Invalid(p, s.ScopeSelector, "unsupported scope applied to resource")
		}
		if knownScope(r.ScopeName) && r.ScopeName != corev1.ResourceQuotaScopePriorityClass &&
			r.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass && r.Operator != corev1.ScopeSelectorOpExists {
			e.Invalid(p.Child("operator"), r.Operator, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, "+
				"ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or "+
				"ResourceQuotaScopeCrossNamespacePodAffinity")
		}
		switch r.Operator {
		case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
			if len(r.Values) == 0 {
				e.Required(p.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
			}
		case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
			if len(r.Values) != 0 {
				e.Invalid(p.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
			}
		default:
			e.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator")
		}
		scopes = append(scopes, r.ScopeName)
	}
	if contradict(scopes) {
		e.Invalid(p, s.Scopes, "conflicting scopes")
	}
}

func knownScope(s corev1.ResourceQuotaScope) bool {
	switch s {
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating,
		corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity,
		corev1.ResourceQuotaScopeVolumeAttributesClass:
		return true
	}
	return false
}

// contradict reports whether no object can match all scopes.
func contradict(scopes []corev1.ResourceQuotaScope) bool {
	has := func(s corev1.ResourceQuotaScope) bool { return slices.Contains(scopes, s) }
	return has(corev1.ResourceQuotaScopeBestEffort) && has(corev1.ResourceQuotaScopeNotBestEffort) ||
		has(corev1.ResourceQuotaScopeTerminating) && has(corev1.ResourceQuotaScopeNotTerminating)
}

// scopeFits reports whether the scope can be combined with each standard resource of a quota.
func scopeFits(s corev1.ResourceQuotaScope, hard corev1.ResourceList) bool {
	for name := range hard {
		if podspec.StandardForQuota(name) && !scopeHas(s, name) {
			return false
		}
	}
	return true
}

// scopeHas reports whether the scope can be combined with a standard resource.
func scopeHas(s corev1.ResourceQuotaScope, name corev1.ResourceName) bool {
	switch s {
	case corev1.ResourceQuotaScopeBestEffort:
		return name == corev1.ResourcePods
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		return name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		switch name {
		case corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceLimitsCPU,
			corev1.ResourceLimitsMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory:
			return true
		}
		return false
	}
	return true
}

func validateQuotaUpdate(q, old *corev1.ResourceQuota) field.ErrorList {
	e := check.Errors{List: validateQuota(&q.Spec)}
	within := func(a, b []corev1.ResourceQuotaScope) bool {
		return !slices.ContainsFunc(a, func(s corev1.ResourceQuotaScope) bool { return !slices.Contains(b, s) })
	}
	if !within(q.Spec.Scopes, old.Spec.Scopes) || !within(old.Spec.Scopes, q.Spec.Scopes) {
		e.Invalid(field.NewPath("spec", "scopes"), q.Spec.Scopes, check.Immutable)
	}
	return e.List
}

func validateQuotaStatus(q, _ *corev1.ResourceQuota) field.ErrorList {
	var e check.Errors
	p := field.NewPath("status")
	for name, amount := range q.Status.Hard {
		podspec.ValidateQuotaResource(&e, name, amount, p.Child("hard").Key(string(name)))
	}
	for name, amount := range q.Status.Used {
		podspec.ValidateQuotaResource(&e, name, amount, p.Child("used").Key(string(name)))
	}
	return e.List
}

func quotaColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column.Text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
		column.Text("Limit", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."),
		column.AgeColumn(),
	}
}

func quotaCells(o resource.Object) []any {
	q := o.(*corev1.ResourceQuota)
	names := make([]string, 0, len(q.Status.Hard))
	for name := range q.Status.Hard {
		names = append(names, string(name))
	}
	slices.Sort(names)
	var requests, limits []string
	for _, name := range names {
		used, hard := q.Status.Used[corev1.ResourceName(name)], q.Status.Hard[corev1.ResourceName(name)]
		text := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
		if strings.HasPrefix(name, "limits.") {
			limits = append(limits, text)
		} else {
			requests = append(requests, text)
		}
	}
	return []any{strings.Join(requests, ", "), strings.Join(limits, ", "), column.Age(q.CreationTimestamp)}
}
