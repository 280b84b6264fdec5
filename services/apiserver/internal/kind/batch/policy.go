package batch

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

func validateFailurePolicy(e *check.Errors, s *batchv1.JobSpec, p *field.Path) {
	rules := s.PodFailurePolicy.Rules
	if len(rules) > maxPolicyRules {
		e.List = append(e.List, field.TooMany(p.Child("rules"), len(rules), maxPolicyRules))
	}
	for i := range rules {
		validateFailureRule(e, s, &rules[i], p.Child("rules").Index(i))
	}
}

var failureActions = []batchv1.PodFailurePolicyAction{
	batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
	batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore,
}

func validateFailureRule(e *check.Errors, s *batchv1.JobSpec, r *batchv1.PodFailurePolicyRule, p *field.Path) {
	switch {
	case r.Action == "":
		e.Required(p.Child("action"), fmt.Sprintf("valid values: %q", failureActions))
	case r.Action == batchv1.PodFailurePolicyActionFailIndex && s.BackoffLimitPerIndex == nil:
		e.Invalid(p.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set")
	default:
		check.Supported(e, p, "action", r.Action, failureActions...)
	}
	if r.OnExitCodes != nil {
		validateExitCodes(e, s, r.OnExitCodes, p.Child("onExitCodes"))
	}
	if len(r.OnPodConditions) > maxPolicyConditions {
		e.List = append(e.List, field.TooMany(p.Child("onPodConditions"), len(r.OnPodConditions), maxPolicyConditions))
	}
	for i, c := range r.OnPodConditions {
		at := p.Child("onPodConditions").Index(i)
		e.Messages(at, "type", string(c.Type), check.LabelKey(string(c.Type)))
		check.OneOf(e, at, "status", c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)
	}
	switch {
	case r.OnExitCodes != nil && len(r.OnPodConditions) > 0:
		e.Invalid(p, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported")
	case r.OnExitCodes == nil && len(r.OnPodConditions) == 0:
		e.Invalid(p, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required")
	}
}

func validateExitCodes(e *check.Errors, s *batchv1.JobSpec, r *batchv1.PodFailurePolicyOnExitCodesRequirement, p *field.Path) {
	operators := []batchv1.PodFailurePolicyOnExitCodesOperator{
		batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn,
	}
	if r.Operator == "" {
		e.Required(p.Child("operator"), fmt.Sprintf("valid values: %q", operators))
	} else {
		check.Supported(e, p, "operator", r.Operator, operators...)
	}
	if r.ContainerName != nil {
		named := func(c corev1.Container) bool { return c.Name == *r.ContainerName }
		if !slices.ContainsFunc(s.Template.Spec.Containers, named) && !slices.ContainsFunc(s.Template.Spec.InitContainers, named) {
			e.Invalid(p.Child("containerName"), *r.ContainerName, "must be one of the container or initContainer names in the pod template")
		}
	}
	at := p.Child("values")
	if len(r.Values) == 0 {
		e.Invalid(at, r.Values, "at least one value is required")
	} else if len(r.Values) > maxPolicyExitCodes {
		e.List = append(e.List, field.TooMany(at, len(r.Values), maxPolicyExitCodes))
	}
	seen := make(map[int32]bool, len(r.Values))
	for i, code := range r.Values {
		if code == 0 && r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn {
			e.Invalid(at.Index(i), code, "must not be 0 for the In operator")
		}
		if seen[code] {
			e.Duplicate(at.Index(i), code)
		}
		seen[code] = true
	}
	if !slices.IsSorted(r.Values) {
		e.Invalid(at, r.Values, "must be ordered")
	}
}

func validateSuccessPolicy(e *check.Errors, s *batchv1.JobSpec, p *field.Path) {
	rules := s.SuccessPolicy.Rules
	if len(rules) == 0 {
		e.Required(p.Child("rules"), "at least one rules must be specified when the successPolicy is specified")
	}
	if len(rules) > maxPolicyRules {
		e.List = append(e.List, field.TooMany(p.Child("rules"), len(rules), maxPolicyRules))
	}
	for i := range rules {
		validateSuccessRule(e, s, &rules[i], p.Child("rules").Index(i))
	}
}

func validateSuccessRule(e *check.Errors, s *batchv1.JobSpec, r *batchv1.SuccessPolicyRule, p *field.Path) {
	if r.SucceededCount == nil && r.SucceededIndexes == nil {
		e.Required(p, "at least one of succeededCount or succeededIndexes must be specified")
	}
	indexes := int32(0)
	if r.SucceededIndexes != nil {
		if len(*r.SucceededIndexes) > maxIndexesText {
			e.List = append(e.List, field.TooLong(p.Child("succeededIndexes"), *r.SucceededIndexes, maxIndexesText))
		}
		n, err := countIndexes(*r.SucceededIndexes, value(s.Completions))
		if err != nil {
			e.Invalid(p.Child("succeededIndexes"), *r.SucceededIndexes, "error parsing succeededIndexes: "+err.Error())
		}
		indexes = n
	}
	if c := r.SucceededCount; c != nil {
		at := p.Child("succeededCount")
		e.AtLeastZero(p, "succeededCount", int64(*c))
		if s.Completions != nil && *c > *s.Completions {
			e.Invalid(at, *c, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", *s.Completions))
		}
		if r.SucceededIndexes != nil && *c > indexes {
			e.Invalid(at, *c, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", indexes))
		}
	}
}

const maxIndexesText = 64 << 10

func value(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

// countIndexes returns the number of indexes in a list such as "1,3-5", which must be increasing
// and less than completions.
func countIndexes(text string, completions int32) (int32, error) {
	if text == "" {
		return 0, nil
	}
	total, last := int32(0), int32(-1)
	for part := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := parseIndex(from, completions)
		if err != nil {
			return 0, err
		}
		if first <= last {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, first)
		}
		last = first
		if ranged {
			if last, err = parseIndex(to, completions); err != nil {
				return 0, err
			}
			if last < first {
				return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", first, last)
			}
		}
		total += last - first + 1
	}
	return total, nil
}

func parseIndex(text string, completions int32) (int32, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("cannot convert string to integer for index: %q", text)
	}
	if int32(n) >= completions {
		return 0, fmt.Errorf("too large index: %q", text)
	}
	return int32(n), nil
}
