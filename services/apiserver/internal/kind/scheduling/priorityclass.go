package scheduling

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// The system's own classes, whose values are above those that users may choose.
const (
	SystemPrefix                = "system-"
	HighestUserPriority   int32 = 1_000_000_000
	SystemClusterCritical       = SystemPrefix + "cluster-critical"
	SystemNodeCritical          = SystemPrefix + "node-critical"
)

// SystemClasses returns the classes that every cluster has.
func SystemClasses() []*schedulingv1.PriorityClass {
	return []*schedulingv1.PriorityClass{
		{
			ObjectMeta: metav1.ObjectMeta{Name: SystemNodeCritical}, Value: 2*HighestUserPriority + 1000,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: SystemClusterCritical}, Value: 2 * HighestUserPriority,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
}

// PriorityClass returns the row of priorityclasses.
func PriorityClass() *resource.Kind {
	k := row.Cluster[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](schedulingv1.SchemeGroupVersion, "priorityclasses", "priorityclasses")
	k.ShortNames = []string{"pc"}
	k.Columns = []metav1.TableColumnDefinition{
		column.New("Value", "integer", column.Doc(schedulingv1.PriorityClass{}, "value")),
		column.New("Global-Default", "boolean", column.Doc(schedulingv1.PriorityClass{}, "globalDefault")),
		column.AgeColumn(),
		column.Text("PreemptionPolicy", column.Doc(schedulingv1.PriorityClass{}, "preemptionPolicy")),
	}
	k.Cells = func(o resource.Object) []any {
		c := o.(*schedulingv1.PriorityClass)
		policy := ""
		if c.PreemptionPolicy != nil {
			policy = string(*c.PreemptionPolicy)
		}
		return []any{int64(c.Value), c.GlobalDefault, column.Age(c.CreationTimestamp), policy}
	}
	k.Rules = resource.Typed[*schedulingv1.PriorityClass]{
		Default: func(c *schedulingv1.PriorityClass) {
			if c.PreemptionPolicy == nil {
				policy := corev1.PreemptLowerPriority
				c.PreemptionPolicy = &policy
			}
		},
		Validate:       validate,
		ValidateUpdate: validateUpdate,
		// A class has a generation, but no spec whose changes would increment it.
		SpecChanged: func(_, _ *schedulingv1.PriorityClass) bool { return false },
	}.Rules()
	return k
}

func validate(c *schedulingv1.PriorityClass) field.ErrorList {
	var e check.Errors
	if strings.HasPrefix(c.Name, SystemPrefix) {
		if why := notSystem(c); why != "" {
			e.Forbidden(field.NewPath("metadata", "name"), "priority class names with '"+SystemPrefix+"' prefix are reserved for system use only. error: "+why)
		}
	} else if c.Value > HighestUserPriority {
		e.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", HighestUserPriority))
	}
	if c.PreemptionPolicy != nil {
		switch *c.PreemptionPolicy {
		case corev1.PreemptLowerPriority, corev1.PreemptNever:
		case "":
			e.Required(field.NewPath("preemptionPolicy"), "")
		default:
			e.List = append(e.List, field.NotSupported(field.NewPath("preemptionPolicy"), *c.PreemptionPolicy,
				[]corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever}))
		}
	}
	return e.List
}

// notSystem returns why a class is not one of the system's classes, or "" if it is.
func notSystem(c *schedulingv1.PriorityClass) string {
	for _, known := range SystemClasses() {
		if known.Name != c.Name {
			continue
		}
		if known.Value != c.Value {
			return fmt.Sprintf("value of %v PriorityClass must be %v", c.Name, known.Value)
		}
		if c.GlobalDefault {
			return fmt.Sprintf("globalDefault of %v PriorityClass must be %v", c.Name, false)
		}
		return ""
	}
	return c.Name + " is not a known system priority class"
}

func validateUpdate(c, old *schedulingv1.PriorityClass) field.ErrorList {
	var e check.Errors
	if c.Value != old.Value {
		e.Forbidden(field.NewPath("value"), "may not be changed in an update.")
	}
	if preemption(c) != preemption(old) {
		e.Invalid(field.NewPath("preemptionPolicy"), c.PreemptionPolicy, check.Immutable)
	}
	return e.List
}

func preemption(c *schedulingv1.PriorityClass) corev1.PreemptionPolicy {
	if c.PreemptionPolicy == nil {
		return corev1.PreemptLowerPriority
	}
	return *c.PreemptionPolicy
}
