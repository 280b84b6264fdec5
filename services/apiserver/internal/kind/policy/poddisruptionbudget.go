package policy

import (
	"slices"

	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// PodDisruptionBudget returns the row of poddisruptionbudgets.
func PodDisruptionBudget() *resource.Kind {
	k := row.Namespaced[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](
		policyv1.SchemeGroupVersion, "poddisruptionbudgets", "poddisruptionbudgets")
	k.ShortNames = []string{"pdb"}
	k.Columns, k.Cells = budgetColumns(), budgetCells
	k.Rules = resource.Typed[*policyv1.PodDisruptionBudget]{
		ValidateName: path.ValidatePathSegmentName,
		PrepareCreate: func(b *policyv1.PodDisruptionBudget) {
			b.Status = policyv1.PodDisruptionBudgetStatus{}
			dropOldLabel(b.Spec.Selector)
		},
		PrepareUpdate: func(b, old *policyv1.PodDisruptionBudget) {
			b.Status = old.Status
			if !check.Same(b.Spec.Selector, old.Spec.Selector) {
				dropOldLabel(b.Spec.Selector)
			}
		},
		Validate:              validateBudget,
		ValidateUpdate:        func(b, _ *policyv1.PodDisruptionBudget) field.ErrorList { return validateBudget(b) },
		NoUnconditionalUpdate: true,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*policyv1.PodDisruptionBudget]{
			PrepareUpdate:         func(b, old *policyv1.PodDisruptionBudget) { b.Spec = old.Spec },
			ValidateUpdate:        validateBudgetStatus,
			NoUnconditionalUpdate: true,
		}.Rules()),
	}
	return k
}

// oldLabel is the key that Kubernetes puts into the empty selector of a policy/v1beta1 budget.
// There, an empty selector matched no pods; in policy/v1 it matches all.
const oldLabel = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match"

// dropOldLabel removes requirements of oldLabel from a selector that has others.
func dropOldLabel(s *metav1.LabelSelector) {
	if s == nil || len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 1 &&
		s.MatchExpressions[0].Operator == metav1.LabelSelectorOpExists && len(s.MatchExpressions[0].Values) == 0 {
		return
	}
	isOld := func(r metav1.LabelSelectorRequirement) bool { return r.Key == oldLabel }
	if slices.ContainsFunc(s.MatchExpressions, isOld) {
		s.MatchExpressions = slices.DeleteFunc(slices.Clone(s.MatchExpressions), isOld)
	}
}

func validateBudget(b *policyv1.PodDisruptionBudget) field.ErrorList {
	var e check.Errors
	s, p := &b.Spec, field.NewPath("spec")
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		e.Invalid(p, s, "minAvailable and maxUnavailable cannot be both set")
	}
	number := func(child string, v *intstr.IntOrString) {
		e.NumberOrPercent(p, child, v)
		if n, percent := check.Percent(v); percent && n > 100 {
			e.Invalid(p.Child(child), v, "must not be greater than 100%")
		}
	}
	number("minAvailable", s.MinAvailable)
	number("maxUnavailable", s.MaxUnavailable)
	e.Selector(p, "selector", s.Selector)
	if policy := s.UnhealthyPodEvictionPolicy; policy != nil {
		check.Supported(&e, p, "unhealthyPodEvictionPolicy", *policy, policyv1.AlwaysAllow, policyv1.IfHealthyBudget)
	}
	return e.List
}

func validateBudgetStatus(b, _ *policyv1.PodDisruptionBudget) field.ErrorList {
	var e check.Errors
	s, p := &b.Status, field.NewPath("status")
	e.Append(validation.ValidateConditions(s.Conditions, p.Child("conditions")))
	e.AtLeastZero(p, "disruptionsAllowed", int64(s.DisruptionsAllowed))
	e.AtLeastZero(p, "currentHealthy", int64(s.CurrentHealthy))
	e.AtLeastZero(p, "desiredHealthy", int64(s.DesiredHealthy))
	e.AtLeastZero(p, "expectedPods", int64(s.ExpectedPods))
	return e.List
}

func budgetColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column.Text("Min Available", "The minimum number of pods that must be available."),
		column.Text("Max Unavailable", "The maximum number of pods that may be unavailable."),
		column.New("Allowed Disruptions", "integer", "Calculated number of pods that may be disrupted at this time."),
		column.AgeColumn(),
	}
}

func budgetCells(o resource.Object) []any {
	b := o.(*policyv1.PodDisruptionBudget)
	text := func(v *intstr.IntOrString) string {
		if v == nil {
			return "N/A"
		}
		return v.String()
	}
	return []any{
		text(b.Spec.MinAvailable), text(b.Spec.MaxUnavailable), int64(b.Status.DisruptionsAllowed), column.Age(b.CreationTimestamp),
	}
}
