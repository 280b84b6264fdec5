package apps

import (
	"encoding/json"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ControllerRevision returns the row of controllerrevisions.
func ControllerRevision() *resource.Kind {
	k := row.Namespaced[appsv1.ControllerRevision, appsv1.ControllerRevisionList](
		appsv1.SchemeGroupVersion, "controllerrevisions", "controllerrevisions")
	k.NoGeneration = true
	k.Columns, k.Cells = controllerRevisionColumns(), controllerRevisionCells
	k.Rules = resource.Typed[*appsv1.ControllerRevision]{
		Validate: func(r *appsv1.ControllerRevision) field.ErrorList {
			var e check.Errors
			e.AtLeastZero(nil, "revision", r.Revision)
			validateData(&e, r.Data.Raw)
			return e.List
		},
		ValidateUpdate: func(r, old *appsv1.ControllerRevision) field.ErrorList {
			var e check.Errors
			e.AtLeastZero(nil, "revision", r.Revision)
			if !equality.Semantic.DeepEqual(r.Data.Raw, old.Data.Raw) {
				e.Invalid(field.NewPath("data"), r.Data, check.Immutable)
			}
			return e.List
		},
	}.Rules()
	return k
}

func validateData(e *check.Errors, raw []byte) {
	p := field.NewPath("data")
	var v any
	if raw != nil {
		if err := json.Unmarshal(raw, &v); err != nil {
			e.Invalid(p, "<value omitted>", "error parsing data: "+err.Error())
			return
		}
	}
	if v == nil {
		e.Required(p, "data is mandatory")
	} else if _, object := v.(map[string]any); !object {
		e.Required(p, "data must be a valid JSON object")
	}
}

func controllerRevisionColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column.Text("Controller", "Controller of the object"),
		column.Text("Revision", column.Doc(appsv1.ControllerRevision{}, "revision")),
		column.AgeColumn(),
	}
}

func controllerRevisionCells(o resource.Object) []any {
	r := o.(*appsv1.ControllerRevision)
	controller := column.None
	if owner := metav1.GetControllerOfNoCopy(r); owner != nil {
		gk := schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).GroupKind()
		controller = strings.ToLower(gk.String()) + "/" + owner.Name
	}
	return []any{controller, r.Revision, column.Age(r.CreationTimestamp)}
}
