package apps

import (
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Deployment returns the row of deployments.
func Deployment() *resource.Kind {
	k := row.Namespaced[appsv1.Deployment, appsv1.DeploymentList](appsv1.SchemeGroupVersion, "deployments", "deployments")
	k.ShortNames = []string{"deploy"}
	k.Categories = []string{"all"}
	k.Columns, k.Cells = deploymentColumns(), deploymentCells
	k.Rules = resource.Typed[*appsv1.Deployment]{
		Default: defaultDeployment,
		PrepareCreate: func(d *appsv1.Deployment) {
			d.Status = appsv1.DeploymentStatus{}
			podspec.Drop(&d.Spec.Template.Spec)
		},
		PrepareUpdate: func(d, old *appsv1.Deployment) {
			d.Status = old.Status
			podspec.Drop(&d.Spec.Template.Spec)
		},
		// A changed annotation counts as well, because controllers act on some of them.
		SpecChanged: func(d, old *appsv1.Deployment) bool {
			return !maps.Equal(d.Annotations, old.Annotations) || !check.Same(&d.Spec, &old.Spec)
		},
		Warnings: func(d, old *appsv1.Deployment) []string {
			if old == nil {
				return warnings(d.Name, true, &d.Spec.Template, nil)
			}
			return warnings(d.Name, false, &d.Spec.Template, &old.Spec.Template)
		},
		Validate:       validateDeployment,
		ValidateUpdate: validateDeploymentUpdate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*appsv1.Deployment]{
			Default: defaultDeployment,
			PrepareUpdate: func(d, old *appsv1.Deployment) {
				d.Spec = old.Spec
				d.Labels = old.Labels
			},
			ValidateUpdate: validateDeploymentStatus,
		}.Rules(), "spec", "metadata.labels"),
		"scale": row.Scale(resource.Scale{
			Get: func(o resource.Object) (int32, int32, string) {
				d := o.(*appsv1.Deployment)
				return replicas(d.Spec.Replicas), d.Status.Replicas, selector(d.Spec.Selector)
			},
			Set: func(o resource.Object, n int32) { o.(*appsv1.Deployment).Spec.Replicas = &n },
		}),
	}
	return k
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func selector(s *metav1.LabelSelector) string {
	if s == nil {
		return ""
	}
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return parsed.String()
}

// Defaults of a deployment.
const (
	deploymentHistory  = 10
	deploymentDeadline = 600
)

func defaultDeployment(d *appsv1.Deployment) {
	s := &d.Spec
	set(&s.Replicas, 1)
	set(&s.RevisionHistoryLimit, deploymentHistory)
	set(&s.ProgressDeadlineSeconds, deploymentDeadline)
	if s.Strategy.Type == "" {
		s.Strategy.Type = appsv1.RollingUpdateDeploymentStrategyType
	}
	if s.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		if s.Strategy.RollingUpdate == nil {
			s.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{}
		}
		quarter := intstr.FromString("25%")
		set(&s.Strategy.RollingUpdate.MaxUnavailable, quarter)
		set(&s.Strategy.RollingUpdate.MaxSurge, quarter)
	}
	podspec.DefaultTemplate(&s.Template)
}

func set[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

func validateDeployment(d *appsv1.Deployment) field.ErrorList {
	var e check.Errors
	s, p := &d.Spec, field.NewPath("spec")
	e.AtLeastZero(p, "replicas", int64(replicas(s.Replicas)))
	validateSelector(&e, s.Selector, p, "empty selector is invalid for deployment")
	e.Append(podspec.ValidateLongRunning(&s.Template, s.Selector, p.Child("template"), "ReplicaSet"))
	validateStrategy(&e, &s.Strategy, p.Child("strategy"))
	e.AtLeastZero(p, "minReadySeconds", int64(s.MinReadySeconds))
	if s.RevisionHistoryLimit != nil {
		e.AtLeastZero(p, "revisionHistoryLimit", int64(*s.RevisionHistoryLimit))
	}
	if d := s.ProgressDeadlineSeconds; d != nil {
		e.AtLeastZero(p, "progressDeadlineSeconds", int64(*d))
		if *d <= s.MinReadySeconds {
			e.Invalid(p.Child("progressDeadlineSeconds"), *d, "must be greater than minReadySeconds")
		}
	}
	return e.List
}

func validateSelector(e *check.Errors, s *metav1.LabelSelector, p *field.Path, empty string) {
	if s == nil {
		e.Required(p.Child("selector"), "")
		return
	}
	e.Selector(p, "selector", s)
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		e.Invalid(p.Child("selector"), s, empty)
	}
	if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
		e.Invalid(p.Child("selector"), s, "invalid label selector")
	}
}

func validateStrategy(e *check.Errors, s *appsv1.DeploymentStrategy, p *field.Path) {
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			e.Forbidden(p.Child("rollingUpdate"), "may not be specified when strategy `type` is '"+string(appsv1.RecreateDeploymentStrategyType)+"'")
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		if s.RollingUpdate == nil {
			e.Required(p.Child("rollingUpdate"), "this should be defaulted and never be nil")
			return
		}
		validateRollingUpdate(e, s.RollingUpdate, p.Child("rollingUpdate"))
	default:
		e.List = append(e.List, field.NotSupported(p, s, []appsv1.DeploymentStrategyType{
			appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType,
		}))
	}
}

func validateRollingUpdate(e *check.Errors, r *appsv1.RollingUpdateDeployment, p *field.Path) {
	e.NumberOrPercent(p, "maxUnavailable", r.MaxUnavailable)
	e.NumberOrPercent(p, "maxSurge", r.MaxSurge)
	if zero(r.MaxUnavailable) && zero(r.MaxSurge) {
		e.Invalid(p.Child("maxUnavailable"), r.MaxUnavailable, "may not be 0 when `maxSurge` is 0")
	}
	if n, percent := check.Percent(r.MaxUnavailable); percent && n > 100 {
		e.Invalid(p.Child("maxUnavailable"), r.MaxUnavailable, "must not be greater than 100%")
	}
}

func zero(v *intstr.IntOrString) bool {
	n, percent := check.Percent(v)
	if !percent && v != nil {
		n = v.IntValue()
	}
	return n == 0
}

func validateDeploymentUpdate(d, old *appsv1.Deployment) field.ErrorList {
	e := check.Errors{List: validateDeployment(d)}
	if !check.Same(d.Spec.Selector, old.Spec.Selector) {
		e.Invalid(field.NewPath("spec", "selector"), d.Spec.Selector, check.Immutable)
	}
	return e.List
}

func validateDeploymentStatus(d, old *appsv1.Deployment) field.ErrorList {
	var e check.Errors
	s, p := &d.Status, field.NewPath("status")
	e.AtLeastZero(p, "observedGeneration", s.ObservedGeneration)
	e.AtLeastZero(p, "replicas", int64(s.Replicas))
	e.AtLeastZero(p, "updatedReplicas", int64(s.UpdatedReplicas))
	e.AtLeastZero(p, "readyReplicas", int64(s.ReadyReplicas))
	e.AtLeastZero(p, "availableReplicas", int64(s.AvailableReplicas))
	e.AtLeastZero(p, "unavailableReplicas", int64(s.UnavailableReplicas))
	notMore(&e, p, "updatedReplicas", s.UpdatedReplicas, s.Replicas, "cannot be greater than status.replicas")
	notMore(&e, p, "readyReplicas", s.ReadyReplicas, s.Replicas, "cannot be greater than status.replicas")
	notMore(&e, p, "availableReplicas", s.AvailableReplicas, s.Replicas, "cannot be greater than status.replicas")
	notMore(&e, p, "availableReplicas", s.AvailableReplicas, s.ReadyReplicas, "cannot be greater than readyReplicas")
	if s.TerminatingReplicas != nil {
		e.AtLeastZero(p, "terminatingReplicas", int64(*s.TerminatingReplicas))
	}
	if s.CollisionCount != nil {
		e.AtLeastZero(p, "collisionCount", int64(*s.CollisionCount))
	}
	if was := old.Status.CollisionCount; was != nil {
		if now := s.CollisionCount; now == nil || *now < *was {
			e.Invalid(p.Child("collisionCount"), now, "cannot be decremented")
		}
	}
	return e.List
}

func notMore(e *check.Errors, p *field.Path, child string, value, limit int32, detail string) {
	if value > limit {
		e.Invalid(p.Child(child), value, detail)
	}
}

func deploymentColumns() []metav1.TableColumnDefinition {
	status := appsv1.DeploymentStatus{}
	return []metav1.TableColumnDefinition{
		column.Text("Ready", "Number of the pod with ready state"),
		column.Text("Up-to-date", column.Doc(status, "updatedReplicas")),
		column.Text("Available", column.Doc(status, "availableReplicas")),
		column.AgeColumn(),
		column.Wide("Containers", "Names of each container in the template."),
		column.Wide("Images", "Images referenced by each container in the template."),
		column.Wide("Selector", column.Doc(appsv1.DeploymentSpec{}, "selector")),
	}
}

func deploymentCells(o resource.Object) []any {
	d := o.(*appsv1.Deployment)
	names, images := column.Containers(d.Spec.Template.Spec.Containers)
	return []any{
		fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, replicas(d.Spec.Replicas)),
		int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), column.Age(d.CreationTimestamp),
		names, images, column.Selector(d.Spec.Selector),
	}
}
