package rest

import (
	"errors"
	"net/http"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/pipeline"
)

// deleteOptions returns the options of a delete from the body or, if there is none, from the
// query.
func (x *exchange) deleteOptions() (*metav1.DeleteOptions, bool) {
	data, ok := x.data()
	if !ok {
		return nil, false
	}
	options := &metav1.DeleteOptions{}
	if len(data) > 0 {
		encoding, ok := negotiate.Body(x.r.Header.Get("Content-Type"))
		if !ok {
			x.refuse(x.verb, errUnsupported(negotiate.BodyTypes))
			return nil, false
		}
		if err := decodeDeleteOptions(data, encoding, options); err != nil {
			x.refuse(x.verb, apierrors.NewBadRequest(err.Error()))
			return nil, false
		}
	} else {
		if err := x.query.BadGracePeriodSeconds; err != nil {
			x.refuse(x.verb, apierrors.NewBadRequest(err.Error()))
			return nil, false
		}
		x.queryDeleteOptions(options)
	}
	if ignore := options.IgnoreStoreReadErrorWithClusterBreakingPotential; ignore != nil && *ignore {
		x.refuse(x.verb, apierrors.NewInvalid(deleteOptionsKind, "", field.ErrorList{field.Forbidden(
			field.NewPath("ignoreStoreReadErrorWithClusterBreakingPotential"), "not supported by Keelson",
		)}))
		return nil, false
	}
	if !x.checkOptions("DeleteOptions", validation.ValidateDeleteOptions(options)) {
		return nil, false
	}
	return options, true
}

var deleteOptionsKind = schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}

// queryDeleteOptions sets the options from the query. There, uid and resourceVersion are
// preconditions, in the case of a collection for each of its objects.
func (x *exchange) queryDeleteOptions(options *metav1.DeleteOptions) {
	q := &x.query
	options.GracePeriodSeconds = q.GracePeriodSeconds
	options.PropagationPolicy = (*metav1.DeletionPropagation)(q.PropagationPolicy)
	//lint:ignore SA1019 old clients still send it
	options.OrphanDependents = q.OrphanDependents
	options.DryRun = q.DryRun
	options.IgnoreStoreReadErrorWithClusterBreakingPotential = q.IgnoreReadErrors
	if q.UID == "" && q.ResourceVersion == "" {
		return
	}
	options.Preconditions = &metav1.Preconditions{}
	if q.UID != "" {
		uid := types.UID(q.UID)
		options.Preconditions.UID = &uid
	}
	if q.ResourceVersion != "" {
		version := q.ResourceVersion
		options.Preconditions.ResourceVersion = &version
	}
}

// decodeDeleteOptions accepts DeleteOptions of any group and version, because Kubernetes
// registers them in all of them.
func decodeDeleteOptions(data []byte, encoding negotiate.Encoding, into *metav1.DeleteOptions) error {
	var kind string
	switch encoding {
	case negotiate.Protobuf:
		_, declared, raw, err := codec.OpenEnvelope(data)
		if err != nil {
			return err
		}
		if err := unmarshal(raw, into); err != nil {
			return err
		}
		kind = declared
	case negotiate.YAML:
		converted, err := codec.YAMLToJSON(data, false)
		if err != nil {
			return err
		}
		data = converted
		fallthrough
	default:
		if err := codec.CheckText(data, reflect.TypeOf(into)); err != nil {
			return err
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(data, into); err != nil {
			return err
		}
		kind = into.Kind
	}
	if kind != "" && kind != "DeleteOptions" {
		return errors.New("decoded object cannot be converted to DeleteOptions")
	}
	return nil
}

// unmarshal recovers from generated decoders that panic on malicious input.
func unmarshal(raw []byte, into interface{ Unmarshal([]byte) error }) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("malformed protobuf message")
		}
	}()
	return into.Unmarshal(raw)
}

// pipelineDelete converts Kubernetes' options to the pipeline's.
func (x *exchange) pipelineDelete(o *metav1.DeleteOptions) pipeline.DeleteOptions {
	return pipeline.DeleteOptions{
		WriteOptions:       pipeline.WriteOptions{DryRun: len(o.DryRun) > 0, UserAgent: x.r.UserAgent()},
		Preconditions:      o.Preconditions,
		GracePeriodSeconds: o.GracePeriodSeconds,
		PropagationPolicy:  o.PropagationPolicy,
		//lint:ignore SA1019 old clients still send it
		OrphanDependents: o.OrphanDependents,
	}
}

func (x *exchange) delete() {
	options, ok := x.deleteOptions()
	if !ok {
		return
	}
	out, err := x.h.api.Delete(x.ctx, x.target(), x.pipelineDelete(options))
	if err != nil {
		x.refused(out, err)
		return
	}
	code := http.StatusOK
	//lint:ignore SA1019 old clients still send it
	if orphan := options.OrphanDependents; !out.Gone && orphan != nil && !*orphan {
		code = http.StatusAccepted
	}
	if out.Status != nil {
		x.warn(out.Warnings)
		x.answerStatus(code, out.Status) // without the code in the Status
		return
	}
	x.outcome(code, out)
}

func (x *exchange) deleteCollection() {
	options, ok := x.deleteOptions()
	if !ok {
		return
	}
	list, err := x.h.api.DeleteCollection(x.ctx, x.target(), x.listOptions(), x.pipelineDelete(options))
	if err != nil {
		x.fail(err)
		return
	}
	x.warn(list.Warnings)
	x.writeList(list)
}
