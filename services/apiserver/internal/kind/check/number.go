package check

import (
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// NumberOrPercent checks that v is a number of at least 0 or a percentage such as "25%".
func (e *Errors) NumberOrPercent(parent *field.Path, child string, v *intstr.IntOrString) {
	switch {
	case v == nil:
	case v.Type == intstr.String:
		if m := validationutil.IsValidPercent(v.StrVal); len(m) > 0 {
			e.Invalid(parent.Child(child), v.StrVal, m[0])
		}
	default:
		e.AtLeastZero(parent, child, int64(v.IntValue()))
	}
}

// Percent returns the number of a percentage. It returns false if v is not one.
func Percent(v *intstr.IntOrString) (int, bool) {
	if v == nil || v.Type != intstr.String {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	return n, err == nil && strings.HasSuffix(v.StrVal, "%")
}
