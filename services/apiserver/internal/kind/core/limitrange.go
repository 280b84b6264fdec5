package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	k8sresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// LimitRange returns the row of limitranges.
func LimitRange() *resource.Kind {
	k := row.Namespaced[corev1.LimitRange, corev1.LimitRangeList](corev1.SchemeGroupVersion, "limitranges", "limitranges")
	k.ShortNames = []string{"limits"}
	k.NoGeneration = true
	k.Rules = resource.Typed[*corev1.LimitRange]{
		Default:        defaultLimitRange,
		Validate:       validateLimitRange,
		ValidateUpdate: func(l, _ *corev1.LimitRange) field.ErrorList { return validateLimitRange(l) },
		CreateOnUpdate: true,
	}.Rules()
	return k
}

// defaultLimitRange completes the items for containers: the default limit is the maximum, and the
// default request is the default limit or else the minimum.
func defaultLimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		if item.Type == corev1.LimitTypeContainer {
			item.Default = completed(item.Default, item.Max)
			item.DefaultRequest = completed(item.DefaultRequest, item.Default, item.Min)
		}
		for _, list := range []corev1.ResourceList{item.Default, item.DefaultRequest, item.Max, item.Min, item.MaxLimitRequestRatio} {
			podspec.DefaultResources(list)
		}
	}
}

// completed returns list with the names that it lacks from others, of which earlier ones take
// precedence. It changes list unless that is nil.
func completed(list corev1.ResourceList, others ...corev1.ResourceList) corev1.ResourceList {
	if list == nil {
		list = corev1.ResourceList{}
	}
	for _, other := range others {
		for name, q := range other {
			if _, set := list[name]; !set {
				list[name] = q.DeepCopy()
			}
		}
	}
	return list
}

func validateLimitRange(l *corev1.LimitRange) field.ErrorList {
	var e check.Errors
	var seen check.Seen
	p := field.NewPath("spec", "limits")
	for i := range l.Spec.Limits {
		item, at := &l.Spec.Limits[i], p.Index(i)
		validateLimitType(&e, item.Type, at)
		if seen.Add(string(item.Type)) {
			e.Duplicate(at.Child("type"), item.Type)
		}
		validateLimitNames(&e, item, at)
		validateLimitAmounts(&e, item, at)
	}
	return e.List
}

func validateLimitType(e *check.Errors, t corev1.LimitType, p *field.Path) {
	if m := check.LabelKey(string(t)); m != nil {
		e.Messages(p, "type", string(t), m)
		return
	}
	if strings.Contains(string(t), "/") {
		return
	}
	switch t {
	case corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim:
	default:
		e.Invalid(p.Child("type"), t, "must be a standard limit type or fully qualified")
	}
}

func validateLimitNames(e *check.Errors, item *corev1.LimitRangeItem, p *field.Path) {
	names := func(child string, list corev1.ResourceList) {
		for name := range list {
			at := p.Child(child).Key(string(name))
			switch item.Type {
			case corev1.LimitTypePod, corev1.LimitTypeContainer:
				podspec.ValidateContainerResourceName(e, name, p, child)
			default:
				podspec.ValidateResourceName(e, name, at)
			}
		}
	}
	names("max", item.Max)
	names("min", item.Min)
	names("maxLimitRequestRatio", item.MaxLimitRequestRatio)
	if item.Type == corev1.LimitTypePod {
		if len(item.Default) > 0 {
			e.Forbidden(p.Child("default"), "may not be specified when `type` is 'Pod'")
		}
		if len(item.DefaultRequest) > 0 {
			e.Forbidden(p.Child("defaultRequest"), "may not be specified when `type` is 'Pod'")
		}
	} else {
		names("default", item.Default)
		names("defaultRequest", item.DefaultRequest)
	}
	if item.Type == corev1.LimitTypePersistentVolumeClaim {
		_, least := item.Min[corev1.ResourceStorage]
		_, most := item.Max[corev1.ResourceStorage]
		if !least && !most {
			e.Required(p.Child("limits"), "either minimum or maximum storage value is required, but neither was provided")
		}
	}
}

// validateLimitAmounts checks that the amounts of each resource do not contradict
// each other.
func validateLimitAmounts(e *check.Errors, item *corev1.LimitRangeItem, p *field.Path) {
	def, request := item.Default, item.DefaultRequest
	if item.Type == corev1.LimitTypePod {
		def, request = nil, nil // validateLimitNames refuses them altogether
	}
	seen := map[corev1.ResourceName]bool{}
	for _, list := range []corev1.ResourceList{item.Max, item.Min, def, request, item.MaxLimitRequestRatio} {
		for name := range list {
			if seen[name] {
				continue
			}
			seen[name] = true
			// greater adds an error if both lists have the resource and a's amount exceeds b's.
			greater := func(a, b corev1.ResourceList, child, aName, bName string, shown corev1.ResourceList) {
				x, ok := a[name]
				y, both := b[name]
				if ok && both && x.Cmp(y) > 0 {
					v := shown[name]
					e.Invalid(p.Child(child).Key(string(name)), v.String(), fmt.Sprintf("%s value %s is greater than %s value %s", aName, x.String(), bName, y.String()))
				}
			}
			greater(item.Min, item.Max, "min", "min", "max", item.Min)
			greater(item.Min, request, "defaultRequest", "min", "default request", request)
			greater(request, item.Max, "defaultRequest", "default request", "max", request)
			greater(request, def, "defaultRequest", "default request", "default limit", request)
			greater(item.Min, def, "default", "min", "default", item.Min)
			greater(def, item.Max, "default", "default", "max", item.Max)
			validateRatio(e, item, name, p.Child("maxLimitRequestRatio").Key(string(name)))
			d, ok := def[name]
			r, both := request[name]
			if ok && both && d.Cmp(r) != 0 && !podspec.Overcommitted(name) {
				e.Invalid(p.Child("defaultRequest").Key(string(name)), r.String(),
					fmt.Sprintf("default value %s must equal to defaultRequest value %s in %s", d.String(), r.String(), name))
			}
		}
	}
}

// validateRatio checks the maximum ratio of limit to request, also against min and max.
func validateRatio(e *check.Errors, item *corev1.LimitRangeItem, name corev1.ResourceName, p *field.Path) {
	ratio, ok := item.MaxLimitRequestRatio[name]
	if !ok {
		return
	}
	if ratio.CmpInt64(1) < 0 {
		e.Invalid(p, ratio.String(), fmt.Sprintf("ratio %s is less than 1", ratio.String()))
	}
	least, hasLeast := item.Min[name]
	most, hasMost := item.Max[name]
	if !hasLeast || !hasMost {
		return
	}
	amount := func(q k8sresource.Quantity) float64 { return float64(q.Value()) }
	r := float64(ratio.Value())
	if ratio.Value() < k8sresource.MaxMilliValue && least.Value() < k8sresource.MaxMilliValue && most.Value() < k8sresource.MaxMilliValue {
		amount = func(q k8sresource.Quantity) float64 { return float64(q.MilliValue()) }
		r = float64(ratio.MilliValue()) / 1000
	}
	if limit := amount(most) / amount(least); r > limit {
		e.Invalid(p, ratio.String(), fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), limit))
	}
}
