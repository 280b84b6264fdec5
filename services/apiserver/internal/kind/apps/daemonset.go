package apps

import (
	"maps"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// DaemonSet returns the row of daemonsets.
func DaemonSet() *resource.Kind {
	k := row.Namespaced[appsv1.DaemonSet, appsv1.DaemonSetList](appsv1.SchemeGroupVersion, "daemonsets", "daemonsets")
	k.ShortNames = []string{"ds"}
	k.Categories = []string{"all"}
	k.Columns, k.Cells = daemonSetColumns(), daemonSetCells
	k.Rules = resource.Typed[*appsv1.DaemonSet]{
		Default: defaultDaemonSet,
		PrepareCreate: func(d *appsv1.DaemonSet) {
			d.Status = appsv1.DaemonSetStatus{}
			generation, err := templateGeneration(d)
			if err == nil { // otherwise validation reports it
				setTemplateGeneration(d, max(generation, 1))
			}
			podspec.Drop(&d.Spec.Template.Spec)
		},
		PrepareUpdate: func(d, old *appsv1.DaemonSet) {
			d.Status = old.Status
			podspec.Drop(&d.Spec.Template.Spec)
			generation, _ := templateGeneration(old)
			if !check.Same(&d.Spec.Template, &old.Spec.Template) {
				generation++
			}
			setTemplateGeneration(d, generation)
		},
		Warnings: func(d, old *appsv1.DaemonSet) []string {
			if old == nil {
				return templateWarnings(&d.Spec.Template, nil)
			}
			return templateWarnings(&d.Spec.Template, &old.Spec.Template)
		},
		Validate: validateDaemonSet,
		ValidateUpdate: func(d, old *appsv1.DaemonSet) field.ErrorList {
			e := check.Errors{List: validateDaemonSet(d)}
			if !check.Same(d.Spec.Selector, old.Spec.Selector) {
				e.Invalid(field.NewPath("spec", "selector"), d.Spec.Selector, check.Immutable)
			}
			return e.List
		},
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*appsv1.DaemonSet]{
			Default: defaultDaemonSet,
			PrepareUpdate: func(d, old *appsv1.DaemonSet) {
				d.Spec = old.Spec
				generation, _ := templateGeneration(old)
				setTemplateGeneration(d, generation)
			},
			ValidateUpdate: validateDaemonSetStatus,
		}.Rules()),
	}
	return k
}

// templateGeneration returns the generation of the template, or 0 if there is none. Kubernetes
// keeps it in an internal field, which apps/v1 represents as an annotation.
func templateGeneration(d *appsv1.DaemonSet) (int64, error) {
	text, ok := d.Annotations[appsv1.DeprecatedTemplateGeneration]
	if !ok {
		return 0, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

// setTemplateGeneration sets the generation of the template. It replaces the map of annotations,
// because the object may share it with its previous state.
func setTemplateGeneration(d *appsv1.DaemonSet, generation int64) {
	text := strconv.FormatInt(generation, 10)
	if d.Annotations[appsv1.DeprecatedTemplateGeneration] == text {
		return
	}
	annotations := make(map[string]string, len(d.Annotations)+1)
	maps.Copy(annotations, d.Annotations)
	annotations[appsv1.DeprecatedTemplateGeneration] = text
	d.Annotations = annotations
}

// historyLimit is the default revisionHistoryLimit, as in Kubernetes.
const historyLimit = 10

func defaultDaemonSet(d *appsv1.DaemonSet) {
	s := &d.Spec
	if s.UpdateStrategy.Type == "" {
		s.UpdateStrategy.Type = appsv1.RollingUpdateDaemonSetStrategyType
	}
	if s.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		if s.UpdateStrategy.RollingUpdate == nil {
			s.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{}
		}
		set(&s.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		set(&s.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	if r := s.UpdateStrategy.RollingUpdate; r != nil { // with OnDelete it has no effect, but its defaults are set, as in Kubernetes
		set(&r.MaxUnavailable, intstr.FromInt32(0))
		set(&r.MaxSurge, intstr.FromInt32(0))
	}
	set(&s.RevisionHistoryLimit, historyLimit)
	podspec.DefaultTemplate(&s.Template)
}

func validateDaemonSet(d *appsv1.DaemonSet) field.ErrorList {
	var e check.Errors
	s, p := &d.Spec, field.NewPath("spec")
	if n, err := templateGeneration(d); err != nil {
		e.Invalid(field.NewPath("metadata", "annotations").Key(appsv1.DeprecatedTemplateGeneration),
			d.Annotations[appsv1.DeprecatedTemplateGeneration], "must be an integer")
	} else {
		e.AtLeastZero(p, "templateGeneration", n)
	}
	if s.Selector != nil {
		e.Selector(p, "selector", s.Selector)
		if len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
			e.Invalid(p.Child("selector"), s.Selector, "empty selector is invalid for daemonset")
		}
	}
	e.Append(podspec.ValidateLongRunning(&s.Template, s.Selector, p.Child("template"), "DaemonSet"))
	e.AtLeastZero(p, "minReadySeconds", int64(s.MinReadySeconds))
	validateDaemonSetStrategy(&e, &s.UpdateStrategy, p.Child("updateStrategy"))
	if s.RevisionHistoryLimit != nil {
		e.AtLeastZero(p, "revisionHistoryLimit", int64(*s.RevisionHistoryLimit))
	}
	return e.List
}

func validateDaemonSetStrategy(e *check.Errors, s *appsv1.DaemonSetUpdateStrategy, p *field.Path) {
	switch s.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
	case appsv1.RollingUpdateDaemonSetStrategyType:
		if s.RollingUpdate == nil {
			e.Required(p.Child("rollingUpdate"), "")
			return
		}
		at, r := p.Child("rollingUpdate"), s.RollingUpdate
		atMostAll(e, at, "maxUnavailable", r.MaxUnavailable)
		atMostAll(e, at, "maxSurge", r.MaxSurge)
		switch {
		case !zero(r.MaxUnavailable) && !zero(r.MaxSurge):
			e.Invalid(at.Child("maxSurge"), r.MaxSurge, "may not be set when maxUnavailable is non-zero")
		case zero(r.MaxUnavailable) && zero(r.MaxSurge):
			e.Required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0")
		}
	default:
		e.List = append(e.List, field.NotSupported(p, s, []appsv1.DaemonSetUpdateStrategyType{
			appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType,
		}))
	}
}

// atMostAll validates a number or a percentage of at most 100%.
func atMostAll(e *check.Errors, p *field.Path, child string, v *intstr.IntOrString) {
	e.NumberOrPercent(p, child, v)
	if n, percent := check.Percent(v); percent && n > 100 {
		e.Invalid(p.Child(child), v, "must not be greater than 100%")
	}
}

func validateDaemonSetStatus(d, old *appsv1.DaemonSet) field.ErrorList {
	var e check.Errors
	s, p := &d.Status, field.NewPath("status")
	e.AtLeastZero(p, "currentNumberScheduled", int64(s.CurrentNumberScheduled))
	e.AtLeastZero(p, "numberMisscheduled", int64(s.NumberMisscheduled))
	e.AtLeastZero(p, "desiredNumberScheduled", int64(s.DesiredNumberScheduled))
	e.AtLeastZero(p, "numberReady", int64(s.NumberReady))
	e.AtLeastZero(p, "observedGeneration", s.ObservedGeneration)
	e.AtLeastZero(p, "updatedNumberScheduled", int64(s.UpdatedNumberScheduled))
	e.AtLeastZero(p, "numberAvailable", int64(s.NumberAvailable))
	e.AtLeastZero(p, "numberUnavailable", int64(s.NumberUnavailable))
	validateCollisions(&e, s.CollisionCount, old.Status.CollisionCount, p)
	return e.List
}

// validateCollisions validates a collisionCount, which must not decrease.
func validateCollisions(e *check.Errors, now, was *int32, p *field.Path) {
	if now != nil {
		e.AtLeastZero(p, "collisionCount", int64(*now))
	}
	if was == nil {
		return
	}
	var n int32
	if now != nil {
		n = *now
	}
	if now == nil || n < *was {
		e.Invalid(p.Child("collisionCount"), n, "cannot be decremented")
	}
}

func daemonSetColumns() []metav1.TableColumnDefinition {
	status := appsv1.DaemonSetStatus{}
	return []metav1.TableColumnDefinition{
		column.New("Desired", "integer", column.Doc(status, "desiredNumberScheduled")),
		column.New("Current", "integer", column.Doc(status, "currentNumberScheduled")),
		column.New("Ready", "integer", column.Doc(status, "numberReady")),
		column.New("Up-to-date", "integer", column.Doc(status, "updatedNumberScheduled")),
		column.New("Available", "integer", column.Doc(status, "numberAvailable")),
		column.Text("Node Selector", column.Doc(corev1.PodSpec{}, "nodeSelector")),
		column.AgeColumn(),
		column.Wide("Containers", "Names of each container in the template."),
		column.Wide("Images", "Images referenced by each container in the template."),
		column.Wide("Selector", column.Doc(appsv1.DaemonSetSpec{}, "selector")),
	}
}

func daemonSetCells(o resource.Object) []any {
	d := o.(*appsv1.DaemonSet)
	s := &d.Status
	names, images := column.Containers(d.Spec.Template.Spec.Containers)
	return []any{
		int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady),
		int64(s.UpdatedNumberScheduled), int64(s.NumberAvailable),
		column.Pairs(d.Spec.Template.Spec.NodeSelector), column.Age(d.CreationTimestamp),
		names, images, column.Selector(d.Spec.Selector),
	}
}
