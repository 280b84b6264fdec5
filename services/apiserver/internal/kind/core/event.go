package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// EventTTLSeconds is how long an event is kept after its last write, in seconds.
const EventTTLSeconds = 3600

// Event returns the row of events. The group events.k8s.io has the same objects in a newer form.
func Event() *resource.Kind {
	k := row.Namespaced[corev1.Event, corev1.EventList](corev1.SchemeGroupVersion, "events", "events")
	k.ShortNames = []string{"ev"}
	k.NoGeneration = true
	k.TTLSeconds, k.Transient = EventTTLSeconds, true
	k.Columns, k.Cells = EventColumns(), func(o resource.Object) []any { return EventCells(o.(*corev1.Event)) }
	k.NoNameColumn = true
	k.Fields = map[string]func(resource.Object) string{
		"involvedObject.kind":            eventField(func(e *corev1.Event) string { return e.InvolvedObject.Kind }),
		"involvedObject.namespace":       eventField(func(e *corev1.Event) string { return e.InvolvedObject.Namespace }),
		"involvedObject.name":            eventField(func(e *corev1.Event) string { return e.InvolvedObject.Name }),
		"involvedObject.uid":             eventField(func(e *corev1.Event) string { return string(e.InvolvedObject.UID) }),
		"involvedObject.apiVersion":      eventField(func(e *corev1.Event) string { return e.InvolvedObject.APIVersion }),
		"involvedObject.resourceVersion": eventField(func(e *corev1.Event) string { return e.InvolvedObject.ResourceVersion }),
		"involvedObject.fieldPath":       eventField(func(e *corev1.Event) string { return e.InvolvedObject.FieldPath }),
		"reason":                         eventField(func(e *corev1.Event) string { return e.Reason }),
		"reportingComponent":             eventField(func(e *corev1.Event) string { return e.ReportingController }),
		"source":                         eventField(eventSource),
		"type":                           eventField(func(e *corev1.Event) string { return e.Type }),
	}
	k.Rules = resource.Typed[*corev1.Event]{
		// Any path segment is valid, because clients choose the names. Only the group
		// events.k8s.io is stricter.
		ValidateName:   func(string, bool) []string { return nil },
		Validate:       validateEvent,
		ValidateUpdate: func(e, _ *corev1.Event) field.ErrorList { return validateEvent(e) },
		CreateOnUpdate: true,
	}.Rules()
	return k
}

func eventField(f func(*corev1.Event) string) func(resource.Object) string {
	return func(o resource.Object) string { return f(o.(*corev1.Event)) }
}

func eventSource(e *corev1.Event) string {
	if e.Source.Component != "" {
		return e.Source.Component
	}
	return e.ReportingController
}

// clusterKinds are cluster-scoped kinds, whose events are in the namespace default.
var clusterKinds = map[string]bool{
	"Node": true, "Namespace": true, "PersistentVolume": true, "StorageClass": true, "PriorityClass": true,
	"ClusterRole": true, "ClusterRoleBinding": true, "CertificateSigningRequest": true, "ComponentStatus": true,
}

func validateEvent(o *corev1.Event) field.ErrorList {
	var e check.Errors
	if !o.EventTime.IsZero() {
		ValidateNewEvent(&e, o, "reportingComponent")
		return e.List
	}
	// An event about a cluster-scoped object is in the namespace default, and every other event
	// in the namespace of its object.
	switch about := o.InvolvedObject.Namespace; {
	case about == "" && clusterKinds[o.InvolvedObject.Kind]:
		if o.Namespace != metav1.NamespaceDefault && o.Namespace != metav1.NamespaceSystem {
			e.Invalid(field.NewPath("involvedObject", "namespace"), about, "does not match event.namespace")
		}
	case about == "":
		if o.Namespace != metav1.NamespaceDefault {
			e.Invalid(field.NewPath("involvedObject", "namespace"), about, "does not match event.namespace")
		}
	case about != o.Namespace:
		e.Invalid(field.NewPath("involvedObject", "namespace"), about, "does not match event.namespace")
	}
	e.Messages(field.NewPath("namespace"), "", o.Namespace, check.Subdomain(o.Namespace))
	return e.List
}

// Limits of the newer form on texts.
const (
	maxEventText = 128
	maxEventNote = 1024
)

// ValidateNewEvent checks an event of the newer form. controller is the name of the field
// reportingController in errors.
func ValidateNewEvent(e *check.Errors, o *corev1.Event, controller string) {
	text := func(child, value string) {
		if value == "" {
			e.Required(field.NewPath(child), "")
		}
		if len(value) > maxEventText {
			e.Invalid(field.NewPath(child), "", "can have at most 128 characters")
		}
	}
	if o.InvolvedObject.Namespace == "" && o.Namespace != metav1.NamespaceDefault && o.Namespace != metav1.NamespaceSystem {
		e.Invalid(field.NewPath("involvedObject", "namespace"), "", "does not match event.namespace")
	}
	if o.ReportingController == "" {
		e.Required(field.NewPath(controller), "")
	}
	e.Messages(field.NewPath(controller), "", o.ReportingController, check.LabelKey(o.ReportingController))
	text("reportingInstance", o.ReportingInstance)
	text("action", o.Action)
	text("reason", o.Reason)
	if len(o.Message) > maxEventNote {
		e.Invalid(field.NewPath("message"), "", "can have at most 1024 characters")
	}
}

// EventColumns returns the columns of events, which events.k8s.io uses as well.
func EventColumns() []metav1.TableColumnDefinition {
	event, object := corev1.Event{}, corev1.ObjectReference{}
	name := column.Wide("Name", column.Doc(metav1.ObjectMeta{}, "name"))
	name.Format = "name"
	return []metav1.TableColumnDefinition{
		column.Text("Last Seen", column.Doc(event, "lastTimestamp")),
		column.Text("Type", column.Doc(event, "type")),
		column.Text("Reason", column.Doc(event, "reason")),
		column.Text("Object", column.Doc(event, "involvedObject")),
		column.Wide("Subobject", column.Doc(object, "fieldPath")),
		column.Wide("Source", column.Doc(event, "source")),
		column.Text("Message", column.Doc(event, "message")),
		column.Wide("First Seen", column.Doc(event, "firstTimestamp")),
		column.Wide("Count", column.Doc(event, "count")),
		name,
	}
}

// EventCells returns the cells for EventColumns.
func EventCells(e *corev1.Event) []any {
	first, last, count := e.FirstTimestamp, e.LastTimestamp, e.Count
	if first.IsZero() {
		first = metav1.NewTime(e.EventTime.Time)
	}
	switch {
	case e.Series != nil:
		last, count = metav1.NewTime(e.Series.LastObservedTime.Time), e.Series.Count
	case last.IsZero():
		last = first
	}
	if count == 0 {
		count = 1 // an event without a count happened once
	}
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	if host := e.Source.Host; host != "" {
		source += ", " + host
	} else if e.ReportingInstance != "" && e.Source.Component == "" {
		source += ", " + e.ReportingInstance
	}
	object := fmt.Sprintf("%s/%s", strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name)
	return []any{
		column.Age(last), e.Type, e.Reason, object, e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message),
		column.Age(first), int64(count), e.Name,
	}
}
