package rest

import (
	"net/http"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/pipeline"
)

// preauthorize is the size in bytes from which a body is only read after the request is
// authorized.
const preauthorize = 64 << 10

// body reads the body of a write and determines its encoding.
func (x *exchange) body() (pipeline.Body, bool) {
	encoding, ok := negotiate.Body(x.r.Header.Get("Content-Type"))
	if !ok {
		x.refuse(x.verb, errUnsupported(negotiate.BodyTypes))
		return pipeline.Body{}, false
	}
	data, ok := x.data()
	return pipeline.Body{Data: data, Type: mediaType(encoding)}, ok
}

// data reads the body.
func (x *exchange) data() ([]byte, bool) {
	if n := x.r.ContentLength; n < 0 || n > preauthorize {
		if err := x.h.api.Authorize(x.ctx, x.verb, x.target()); err != nil {
			x.fail(err)
			return nil, false
		}
	}
	data, err := x.readBody()
	if err != nil {
		x.refuse(x.verb, err)
		return nil, false
	}
	return data, true
}

func mediaType(e negotiate.Encoding) pipeline.MediaType {
	switch e {
	case negotiate.YAML:
		return pipeline.YAML
	case negotiate.Protobuf:
		return pipeline.Protobuf
	}
	return pipeline.JSON
}

// checkOptions refuses options that Kubernetes' validation refuses.
func (x *exchange) checkOptions(kind string, errs field.ErrorList) bool {
	if len(errs) == 0 {
		return true
	}
	x.refuse(x.verb, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs))
	return false
}

// writeOptions returns the options that all writes have.
func (x *exchange) writeOptions() pipeline.WriteOptions {
	q := &x.query
	return pipeline.WriteOptions{
		DryRun:          len(q.DryRun) > 0,
		FieldManager:    q.FieldManager,
		UserAgent:       x.r.UserAgent(),
		FieldValidation: q.FieldValidation,
	}
}

// plainOptions reports whether a write has no options to be checked.
func (x *exchange) plainOptions() bool {
	q := &x.query
	return len(q.DryRun) == 0 && q.FieldManager == "" && q.FieldValidation == "" && q.Force == nil
}

func (x *exchange) create() {
	q := &x.query
	if !x.plainOptions() && !x.checkOptions("CreateOptions", validation.ValidateCreateOptions(&metav1.CreateOptions{
		DryRun: q.DryRun, FieldManager: q.FieldManager, FieldValidation: q.FieldValidation,
	})) {
		return
	}
	body, ok := x.body()
	if !ok {
		return
	}
	out, err := x.h.api.Create(x.ctx, x.target(), body, x.writeOptions())
	if err != nil {
		x.refused(out, err)
		return
	}
	x.outcome(http.StatusCreated, out)
}

func (x *exchange) update() {
	q := &x.query
	if !x.plainOptions() && !x.checkOptions("UpdateOptions", validation.ValidateUpdateOptions(&metav1.UpdateOptions{
		DryRun: q.DryRun, FieldManager: q.FieldManager, FieldValidation: q.FieldValidation,
	})) {
		return
	}
	body, ok := x.body()
	if !ok {
		return
	}
	out, err := x.h.api.Update(x.ctx, x.target(), body, x.writeOptions())
	if err != nil {
		x.refused(out, err)
		return
	}
	x.outcome(createdOr200(out), out)
}

func (x *exchange) patch() {
	q := &x.query
	kind, ok := negotiate.Patch(x.r.Header.Get("Content-Type"))
	if !ok {
		x.refuse(x.verb, errPatchType())
		return
	}
	if (!x.plainOptions() || kind == types.ApplyYAMLPatchType) && !x.checkOptions("PatchOptions", validation.ValidatePatchOptions(&metav1.PatchOptions{
		DryRun: q.DryRun, FieldManager: q.FieldManager, FieldValidation: q.FieldValidation, Force: q.Force,
	}, kind)) {
		return
	}
	data, ok := x.data()
	if !ok {
		return
	}
	options := x.writeOptions()
	options.Force = q.Force != nil && *q.Force
	body := pipeline.Body{Data: data, Type: pipeline.JSON}
	if kind == types.ApplyYAMLPatchType {
		body.Type = pipeline.YAML
	}
	out, err := x.h.api.Patch(x.ctx, x.target(), kind, body, options)
	if err != nil {
		x.refused(out, err)
		return
	}
	x.outcome(createdOr200(out), out)
}

func createdOr200(out *pipeline.Outcome) int {
	if out.Created {
		return http.StatusCreated
	}
	return http.StatusOK
}

// refused sends the error of a write, with the warnings that preceded it.
func (x *exchange) refused(out *pipeline.Outcome, err error) {
	if out != nil {
		x.warn(out.Warnings)
	}
	x.fail(err)
}

// warn sets the Warning headers.
func (x *exchange) warn(warnings []string) {
	const most = 4 << 10 // bytes of warnings, as in Kubernetes
	total := 0
	for i, w := range warnings {
		header, err := utilnet.NewWarningHeader(299, "-", w)
		if err != nil {
			header, _ = utilnet.NewWarningHeader(299, "-", strconv.QuoteToASCII(w))
		}
		if total += len(header); header == "" || total > most && i > 0 {
			continue
		}
		x.Header().Add("Warning", header)
	}
}
