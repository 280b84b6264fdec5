// Package codec decodes bytes from clients into objects and encodes objects: as JSON, YAML,
// Kubernetes' protobuf envelope or the bare protobuf message.
//
// It must never modify an object that it encodes, know about a transport, or trust a length that
// it read: the memory it uses is bounded by the size of the input.
package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
)

// MediaType is the encoding of a body.
type MediaType string

// Media types that objects are read and written in.
const (
	JSON     MediaType = "application/json"
	YAML     MediaType = "application/yaml"
	Protobuf MediaType = "application/vnd.kubernetes.protobuf" // Kubernetes' envelope, "k8s\x00"
	Message  MediaType = "message"                             // the bare protobuf message, as in gRPC
)

// Validation is how unknown and duplicate fields are handled.
type Validation string

// Kubernetes' field validation directives. The empty string means Warn.
const (
	Ignore Validation = metav1.FieldValidationIgnore
	Warn   Validation = metav1.FieldValidationWarn
	Strict Validation = metav1.FieldValidationStrict
)

// Input is a body to decode.
type Input struct {
	Data []byte
	Type MediaType
	// Declared is the kind of the body if its encoding does not include one.
	Declared schema.GroupVersionKind
	// Want is the kind that the request is for.
	Want schema.GroupVersionKind
	// New returns an empty object to decode into.
	New func() resource.Object
	// Known reports whether a kind exists, for the text of an error. nil means that none does.
	Known func(schema.GroupVersionKind) bool
	// Validation applies to JSON and YAML.
	Validation Validation
	// Loose allows a body without apiVersion and kind.
	Loose bool
}

// Decode decodes one object and leaves its TypeMeta empty. It returns warnings for the Warn
// directive. Every error is an *apierrors.StatusError, BadRequest or UnsupportedMediaType, with
// Kubernetes' text.
func Decode(in Input) (resource.Object, []string, error) {
	switch in.Type {
	case JSON, YAML:
		return decodeText(in)
	case Protobuf:
		return decodeEnvelope(in)
	case Message:
		return decodeMessage(in)
	}
	return nil, nil, apierrors.NewGenericServerResponse(415, "", schema.GroupResource{}, "",
		fmt.Sprintf("the body of the request was in an unknown format - accepted media types include: %s, %s, %s", JSON, YAML, Protobuf), 0, true)
}

func decodeMessage(in Input) (resource.Object, []string, error) {
	if in.Declared != in.Want {
		return nil, nil, wrongKind(in, in.Declared)
	}
	obj := in.New()
	if err := unmarshal(obj, in.Data); err != nil {
		return nil, nil, cannotHandle(in, in.Declared, err)
	}
	return obj, nil, nil
}

func decodeEnvelope(in Input) (resource.Object, []string, error) {
	if len(in.Data) == 0 {
		return nil, nil, unrecognized(in, errors.New("empty data"))
	}
	apiVersion, kind, raw, err := OpenEnvelope(in.Data)
	if err != nil {
		return nil, nil, unrecognized(in, err)
	}
	gvk := in.Want
	if apiVersion != "" || kind != "" {
		gv, err := schema.ParseGroupVersion(apiVersion)
		if err != nil {
			return nil, nil, unrecognized(in, err)
		}
		gvk = defaultKind(gv.WithKind(kind), in.Want)
	}
	if gvk != in.Want {
		return nil, nil, wrongKind(in, gvk)
	}
	obj := in.New()
	if err := unmarshal(obj, raw); err != nil {
		return nil, nil, cannotHandle(in, gvk, err)
	}
	return obj, nil, nil
}

// defaultKind completes the kind of a body from the kind of the request, as Kubernetes'
// serializers do.
func defaultKind(got, want schema.GroupVersionKind) schema.GroupVersionKind {
	if got.Kind == "" {
		got.Kind = want.Kind
	}
	if got.Version == "" && got.Group == "" {
		got.Group, got.Version = want.Group, want.Version
	}
	return got
}

// unmarshal decodes a protobuf message and clears its TypeMeta. It recovers from generated
// decoders that panic on malicious input.
func unmarshal(obj resource.Object, data []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed protobuf message: %v", p)
		}
	}()
	if err := CheckMessage(data, reflect.TypeOf(obj)); err != nil {
		return err
	}
	if err := obj.Unmarshal(data); err != nil {
		return err
	}
	return checkManagedFields(obj)
}

// checkManagedFields refuses managed fields, and data of a ControllerRevision, that are not
// JSON, which protobuf can carry. If they were stored, neither the object nor a list with it
// could be returned as JSON.
func checkManagedFields(obj resource.Object) error {
	if err := checkEntries(obj.GetManagedFields()); err != nil {
		return err
	}
	switch o := obj.(type) {
	case *appsv1.Deployment:
		return checkEntries(o.Spec.Template.ManagedFields)
	case *appsv1.ReplicaSet:
		return checkEntries(o.Spec.Template.ManagedFields)
	case *appsv1.DaemonSet:
		return checkEntries(o.Spec.Template.ManagedFields)
	case *appsv1.StatefulSet:
		for i := range o.Spec.VolumeClaimTemplates {
			if err := checkEntries(o.Spec.VolumeClaimTemplates[i].ManagedFields); err != nil {
				return err
			}
		}
		return checkEntries(o.Spec.Template.ManagedFields)
	case *appsv1.ControllerRevision:
		if raw := o.Data.Raw; len(raw) > 0 && !json.Valid(raw) {
			return errors.New("data is not JSON")
		}
	case *batchv1.Job:
		return checkEntries(o.Spec.Template.ManagedFields)
	case *batchv1.CronJob:
		if err := checkEntries(o.Spec.JobTemplate.ManagedFields); err != nil {
			return err
		}
		return checkEntries(o.Spec.JobTemplate.Spec.Template.ManagedFields)
	case *corev1.PodTemplate:
		return checkEntries(o.Template.ManagedFields)
	case *corev1.ReplicationController:
		if o.Spec.Template != nil {
			return checkEntries(o.Spec.Template.ManagedFields)
		}
	}
	return nil
}

func checkEntries(list []metav1.ManagedFieldsEntry) error {
	for i := range list {
		if raw := list[i].FieldsV1.GetRawBytes(); len(raw) > 0 && !json.Valid(raw) {
			return fmt.Errorf("managedFields[%d].fieldsV1 of manager %q is not JSON", i, list[i].Manager)
		}
	}
	return nil
}

// CheckKind compares the apiVersion and kind in a JSON body with those that are expected. Missing
// ones match.
func CheckKind(data []byte, want schema.GroupVersionKind, known func(schema.GroupVersionKind) bool) error {
	got, err := typeMeta(data)
	if err != nil {
		return err
	}
	if got = defaultKind(got, want); got == want {
		return nil
	}
	if !known(got) {
		return notRegistered(got)
	}
	return noConversion(got, want)
}

func notRegistered(got schema.GroupVersionKind) error {
	return fmt.Errorf("no kind %q is registered for version %q", got.Kind, got.GroupVersion())
}

func noConversion(got, want schema.GroupVersionKind) error {
	group := want.Group
	if group == "" {
		group = "core"
	}
	group, _, _ = strings.Cut(group, ".")
	return fmt.Errorf("converting (%s.%s) to (%s.%s): unknown conversion", got.Version, got.Kind, group, want.Kind)
}

func wrongKind(in Input, got schema.GroupVersionKind) error {
	if in.Known == nil || !in.Known(got) {
		return cannotHandle(in, got, notRegistered(got))
	}
	if got.GroupVersion() != in.Want.GroupVersion() {
		return apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", got.GroupVersion(), in.Want.GroupVersion()))
	}
	return cannotHandle(in, got, noConversion(got, in.Want))
}

func cannotHandle(in Input, got schema.GroupVersionKind, err error) error {
	if got.Kind == "" {
		return unrecognized(in, err)
	}
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", got.Kind, got.Version, in.Want.Kind, err))
}

func unrecognized(in Input, err error) error {
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", in.Want.Kind, err, summarize(in.Data)))
}

// summarize returns the beginning of a body, in Kubernetes' format.
func summarize(data []byte) string {
	const most = 30
	switch {
	case len(data) == 0:
		return "<empty>"
	case data[0] == '{' && len(data) <= most:
		return string(data)
	case data[0] == '{':
		return string(data[:most]) + " ..."
	case len(data) > most:
		return fmt.Sprintf("%x ...", data[:most])
	default:
		return fmt.Sprintf("%x", data)
	}
}

// StrictWarnings returns the messages of strict decoding errors. The YAML decoder reports all
// duplicate keys in one error with a line for each.
func StrictWarnings(errs []error) []string {
	var out []string
	for _, e := range errs {
		text := e.Error()
		lines, isYAML := strings.CutPrefix(strings.TrimPrefix(text, "error converting YAML to JSON: "), "yaml: unmarshal errors:\n")
		if !isYAML {
			out = append(out, text)
			continue
		}
		for line := range strings.SplitSeq(lines, "\n") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// strictError joins strict decoding errors as Kubernetes' StrictDecodingError does.
func strictError(errs []error) error { return runtime.NewStrictDecodingError(errs) }
