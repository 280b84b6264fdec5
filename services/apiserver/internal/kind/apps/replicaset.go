package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ReplicaSet returns the row of replicasets.
func ReplicaSet() *resource.Kind {
	k := row.Namespaced[appsv1.ReplicaSet, appsv1.ReplicaSetList](appsv1.SchemeGroupVersion, "replicasets", "replicasets")
	k.ShortNames = []string{"rs"}
	k.Categories = []string{"all"}
	k.Columns, k.Cells = replicaSetColumns(), replicaSetCells
	k.Fields = map[string]func(resource.Object) string{
		"status.replicas": func(o resource.Object) string {
			return strconv.Itoa(int(o.(*appsv1.ReplicaSet).Status.Replicas))
		},
	}
	k.Rules = resource.Typed[*appsv1.ReplicaSet]{
		Default: defaultReplicaSet,
		PrepareCreate: func(r *appsv1.ReplicaSet) {
			r.Status = appsv1.ReplicaSetStatus{}
			podspec.Drop(&r.Spec.Template.Spec)
		},
		PrepareUpdate: func(r, old *appsv1.ReplicaSet) {
			r.Status = old.Status
			podspec.Drop(&r.Spec.Template.Spec)
		},
		Warnings: func(r, old *appsv1.ReplicaSet) []string {
			if old == nil {
				return warnings(r.Name, true, &r.Spec.Template, nil)
			}
			return warnings(r.Name, false, &r.Spec.Template, &old.Spec.Template)
		},
		Validate: validateReplicaSet,
		ValidateUpdate: func(r, old *appsv1.ReplicaSet) field.ErrorList {
			e := check.Errors{List: validateReplicaSet(r)}
			if !check.Same(r.Spec.Selector, old.Spec.Selector) {
				e.Invalid(field.NewPath("spec", "selector"), r.Spec.Selector, check.Immutable)
			}
			return e.List
		},
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*appsv1.ReplicaSet]{
			Default:        defaultReplicaSet,
			PrepareUpdate:  func(r, old *appsv1.ReplicaSet) { r.Spec = old.Spec },
			ValidateUpdate: validateReplicaSetStatus,
		}.Rules()),
		"scale": row.Scale(resource.Scale{
			Get: func(o resource.Object) (int32, int32, string) {
				r := o.(*appsv1.ReplicaSet)
				return replicas(r.Spec.Replicas), r.Status.Replicas, selector(r.Spec.Selector)
			},
			Set: func(o resource.Object, n int32) { o.(*appsv1.ReplicaSet).Spec.Replicas = &n },
		}),
	}
	return k
}

func defaultReplicaSet(r *appsv1.ReplicaSet) {
	set(&r.Spec.Replicas, 1)
	podspec.DefaultTemplate(&r.Spec.Template)
}

func validateReplicaSet(r *appsv1.ReplicaSet) field.ErrorList {
	var e check.Errors
	s, p := &r.Spec, field.NewPath("spec")
	e.AtLeastZero(p, "replicas", int64(replicas(s.Replicas)))
	e.AtLeastZero(p, "minReadySeconds", int64(s.MinReadySeconds))
	validateSelector(&e, s.Selector, p, "empty selector is invalid for deployment")
	e.Append(podspec.ValidateLongRunning(&s.Template, s.Selector, p.Child("template"), "ReplicaSet"))
	return e.List
}

func validateReplicaSetStatus(r, _ *appsv1.ReplicaSet) field.ErrorList {
	var e check.Errors
	s, p := &r.Status, field.NewPath("status")
	e.AtLeastZero(p, "replicas", int64(s.Replicas))
	e.AtLeastZero(p, "fullyLabeledReplicas", int64(s.FullyLabeledReplicas))
	e.AtLeastZero(p, "readyReplicas", int64(s.ReadyReplicas))
	e.AtLeastZero(p, "availableReplicas", int64(s.AvailableReplicas))
	e.AtLeastZero(p, "observedGeneration", s.ObservedGeneration)
	if s.TerminatingReplicas != nil {
		e.AtLeastZero(p, "terminatingReplicas", int64(*s.TerminatingReplicas))
	}
	notMore(&e, p, "fullyLabeledReplicas", s.FullyLabeledReplicas, s.Replicas, "cannot be greater than status.replicas")
	notMore(&e, p, "readyReplicas", s.ReadyReplicas, s.Replicas, "cannot be greater than status.replicas")
	notMore(&e, p, "availableReplicas", s.AvailableReplicas, s.Replicas, "cannot be greater than status.replicas")
	notMore(&e, p, "availableReplicas", s.AvailableReplicas, s.ReadyReplicas, "cannot be greater than readyReplicas")
	return e.List
}

func replicaSetColumns() []metav1.TableColumnDefinition {
	spec, status := appsv1.ReplicaSetSpec{}, appsv1.ReplicaSetStatus{}
	return []metav1.TableColumnDefinition{
		column.New("Desired", "integer", column.Doc(spec, "replicas")),
		column.New("Current", "integer", column.Doc(status, "replicas")),
		column.New("Ready", "integer", column.Doc(status, "readyReplicas")),
		column.AgeColumn(),
		column.Wide("Containers", "Names of each container in the template."),
		column.Wide("Images", "Images referenced by each container in the template."),
		column.Wide("Selector", column.Doc(spec, "selector")),
	}
}

func replicaSetCells(o resource.Object) []any {
	r := o.(*appsv1.ReplicaSet)
	names, images := column.Containers(r.Spec.Template.Spec.Containers)
	return []any{
		int64(replicas(r.Spec.Replicas)), int64(r.Status.Replicas), int64(r.Status.ReadyReplicas), column.Age(r.CreationTimestamp),
		names, images, column.Selector(r.Spec.Selector),
	}
}
