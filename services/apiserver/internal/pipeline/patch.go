package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/pipeline/typedpatch"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

func (p *Pipeline) newPatch(ctx context.Context, t Target, kind types.PatchType, b Body, o WriteOptions) (*change, error) {
	c, sub, err := p.newChange(ctx, "patch", t, o)
	if err != nil {
		return nil, err
	}
	if err := checkPatchOptions(kind, o); err != nil {
		return nil, err
	}
	if err := codec.CheckText(b.Data, reflect.TypeOf(c.kind.New())); err != nil {
		return nil, err
	}
	if kind != types.ApplyPatchType && !json.Valid(b.Data) {
		return nil, apierrors.NewBadRequest("invalid JSON patch")
	}
	patch := &patch{p: p, c: c, kind: kind, data: b.Data}
	switch {
	case kind == types.ApplyPatchType:
		return c, p.newApply(c, sub, b)
	case sub != nil && sub.Scale != nil:
		c.plan = func(cur *watchcache.Item) (*step, error) { return p.planScale(c, sub.Scale, cur, patch.scale) }
		return c, nil
	}
	c.plan = func(cur *watchcache.Item) (*step, error) {
		if cur == nil {
			return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
		}
		c.warn = nil
		obj, err := patch.object(cur.Object())
		if err != nil {
			return nil, err
		}
		if err := checkNames(c, obj); err != nil {
			return nil, err
		}
		return p.planUpdate(c, cur, obj, true)
	}
	return c, nil
}

func checkPatchOptions(kind types.PatchType, o WriteOptions) error {
	if err := checkWriteOptions("PatchOptions", o); err != nil {
		return err
	}
	var errs field.ErrorList
	switch kind {
	case types.ApplyPatchType:
		if o.FieldManager == "" {
			errs = append(errs, field.Required(field.NewPath("fieldManager"), "is required for apply patch"))
		}
	case types.JSONPatchType, types.MergePatchType, types.StrategicMergePatchType:
		if o.Force {
			errs = append(errs, field.Forbidden(field.NewPath("force"), "may not be specified for non-apply patch"))
		}
	default:
		return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", schema.GroupResource{}, "",
			fmt.Sprintf("unknown kind of patch %q", kind), 0, true)
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "PatchOptions"}, "", errs)
	}
	return nil
}

// patch is a patch to be applied to an object.
type patch struct {
	p    *Pipeline
	c    *change
	kind types.PatchType
	data []byte
}

// object applies the patch to a copy of cur.
func (a *patch) object(cur resource.Object) (resource.Object, error) {
	if obj := a.typed(cur); obj != nil {
		a.c.shares = !bytes.Contains(a.data, []byte("[]")) && !bytes.Contains(a.data, []byte("{}"))
		return obj, nil
	}
	a.c.shares = false
	out := a.c.kind.New()
	if a.kind == types.StrategicMergePatchType {
		return out, a.strategic(cur, a.c.kind.GVK, out)
	}
	text, err := codec.AppendObject(nil, codec.JSON, a.c.kind.GVK, cur)
	if err != nil {
		return nil, err
	}
	return out, a.text(text, a.c.kind.GVK, out)
}

// typed applies a common patch to the Go type directly. It returns nil for other patches.
func (a *patch) typed(cur resource.Object) resource.Object {
	var apply func(any, []byte) bool
	switch a.kind {
	case types.MergePatchType:
		apply = typedpatch.Merge
	case types.StrategicMergePatchType:
		apply = typedpatch.Strategic
	default:
		return nil
	}
	obj, ok := cur.DeepCopyObject().(resource.Object)
	if !ok || !apply(obj, a.data) {
		return nil
	}
	return obj
}

// text applies a JSON or merge patch to the JSON of an object and decodes the result.
func (a *patch) text(text []byte, gvk schema.GroupVersionKind, out resource.Object) error {
	patched, strict, err := a.apply(text)
	if err != nil {
		return err
	}
	if err := codec.CheckKind(patched, gvk, a.p.knows); err != nil {
		return a.invalid(string(patched), err)
	}
	var more []error
	if a.c.opts.FieldValidation == string(codec.Ignore) {
		err = kjson.UnmarshalCaseSensitivePreserveInts(patched, out)
	} else {
		more, err = kjson.UnmarshalStrict(patched, out)
	}
	if err != nil {
		return a.invalid(string(patched), err)
	}
	out.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return a.strict(append(strict, more...), string(patched))
}

// operation lists the fields of a JSON patch's operations (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

func (a *patch) apply(text []byte) (patched []byte, strict []error, err error) {
	switch a.kind {
	case types.JSONPatchType:
		if a.c.opts.FieldValidation != string(codec.Ignore) {
			var v []operation
			if strict, err = kjson.UnmarshalStrict(a.data, &v); err != nil {
				return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
			}
		}
		for i, e := range strict {
			strict[i] = fmt.Errorf("json patch %w", e)
		}
		patched, err = applyJSON(a.data, text)
		return patched, strict, err
	default:
		if a.c.opts.FieldValidation != string(codec.Ignore) {
			v := map[string]any{}
			if strict, err = kjson.UnmarshalStrict(a.data, &v); err != nil {
				return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
			}
		}
		if patched, err = jsonpatch.MergePatch(text, a.data); err != nil {
			return nil, nil, apierrors.NewBadRequest(err.Error())
		}
		return patched, strict, nil
	}
}

// strategic applies a strategic merge patch.
func (a *patch) strategic(cur runtime.Object, gvk schema.GroupVersionKind, out resource.Object) error {
	changes := map[string]any{}
	strict, err := kjson.UnmarshalStrict(a.data, &changes)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	original, err := runtime.DefaultUnstructuredConverter.ToUnstructured(cur)
	if err != nil {
		return err
	}
	if err := checkLists(a.data, original); err != nil {
		return err
	}
	original["apiVersion"], original["kind"] = gvk.GroupVersion().String(), gvk.Kind
	meta, err := strategicpatch.NewPatchMetaFromStruct(out)
	if err != nil {
		return err
	}
	merged, err := mergeStrategic(original, changes, meta)
	if err != nil {
		return strategicError(err)
	}
	lenient := a.c.opts.FieldValidation == string(codec.Ignore)
	if lenient {
		strict = nil
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, out, !lenient); err != nil {
		unknown, ok := runtime.AsStrictDecodingError(err)
		if !ok {
			return a.invalid(fmt.Sprintf("%+v", changes), err)
		}
		strict = append(strict, unknown.Errors()...)
	}
	out.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return a.strict(strict, fmt.Sprintf("%+v", changes))
}

// mergeStrategic recovers from the library, which panics if the merge key of a list is not a
// plain value.
func mergeStrategic(original, changes map[string]any, meta strategicpatch.LookupPatchMeta) (merged map[string]any, err error) {
	defer func() {
		if p := recover(); p != nil {
			merged, err = nil, apierrors.NewBadRequest(fmt.Sprintf("the patch cannot be merged: %v", p))
		}
	}()
	return strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(original, changes, meta)
}

func strategicError(err error) error {
	switch {
	case apierrors.IsBadRequest(err):
		return err
	case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList),
		errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList),
		errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat):
		return apierrors.NewBadRequest(err.Error())
	case errors.Is(err, mergepatch.ErrNoListOfLists), errors.Is(err, mergepatch.ErrPatchContentNotMatchRetainKeys):
		return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return errPlain(err)
}

// strict returns an error or adds warnings for unknown and duplicate fields, depending on
// fieldValidation.
func (a *patch) strict(errs []error, data string) error {
	switch {
	case len(errs) == 0 || a.c.opts.FieldValidation == string(codec.Ignore):
		return nil
	case a.c.opts.FieldValidation == string(codec.Strict):
		return a.invalid(data, runtime.NewStrictDecodingError(errs))
	}
	a.c.warn = append(a.c.warn, codec.StrictWarnings(errs)...)
	return nil
}

func (a *patch) invalid(data string, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), data, err.Error())})
}

// scale applies the patch to a Scale.
func (a *patch) scale(cur *scaled) (*scaled, error) {
	out := &scaled{}
	var err error
	if a.kind == types.StrategicMergePatchType {
		err = a.strategic(cur, scaleGVK, out)
	} else {
		var text []byte
		if text, err = json.Marshal(cur); err == nil {
			err = a.text(text, scaleGVK, out)
		}
	}
	return out, err
}
