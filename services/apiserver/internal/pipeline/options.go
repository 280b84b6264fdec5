package pipeline

import (
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// checkWriteOptions applies Kubernetes' rules to the options of a write.
func checkWriteOptions(kind string, o WriteOptions) error {
	var errs field.ErrorList
	if o.FieldManager != "" {
		errs = append(errs, validation.ValidateFieldManager(o.FieldManager, field.NewPath("fieldManager"))...)
	}
	if o.FieldValidation != "" {
		errs = append(errs, validation.ValidateFieldValidation(field.NewPath("fieldValidation"), o.FieldValidation)...)
	}
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind(kind).GroupKind(), "", errs)
}

// longestManager is the maximum length of a field manager's name (apimachinery's
// validation.FieldManagerMaxLength).
const longestManager = 128

// manager returns the writer's field manager: the requested one, or the first part of the user
// agent.
func (o *WriteOptions) manager() string {
	if o.FieldManager != "" {
		return o.FieldManager
	}
	name, _, _ := strings.Cut(o.UserAgent, "/")
	out := make([]rune, 0, len(name))
	for _, r := range name {
		if len(out) == longestManager {
			break
		}
		if r >= 0x20 && r != 0x7f && r != 0xfffd {
			out = append(out, r)
		}
	}
	return string(out)
}

// knows reports whether a kind exists, for the text of errors.
func (p *Pipeline) knows(gvk schema.GroupVersionKind) bool {
	if p.cfg.Table.ByKind(gvk) != nil {
		return true
	}
	for _, k := range p.cfg.Table.Kinds() {
		if k.GVK.Group == gvk.Group && k.GVK.Kind == gvk.Kind {
			return true
		}
	}
	return false
}
