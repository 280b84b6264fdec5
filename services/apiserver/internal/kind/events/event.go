package events

import (
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"

	"keelson.dev/services/apiserver/internal/kind/core"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Event returns the row of events.k8s.io's events: the core group's events in their newer form,
// stored in the core group's form.
func Event() *resource.Kind {
	k := row.Namespaced[eventsv1.Event, eventsv1.EventList](eventsv1.SchemeGroupVersion, "events", "events")
	k.ShortNames = []string{"ev"}
	k.NoGeneration = true
	k.TTLSeconds, k.Transient = core.EventTTLSeconds, true
	k.Fields = map[string]func(resource.Object) string{
		"regarding.kind":            selectable(func(e *eventsv1.Event) string { return e.Regarding.Kind }),
		"regarding.namespace":       selectable(func(e *eventsv1.Event) string { return e.Regarding.Namespace }),
		"regarding.name":            selectable(func(e *eventsv1.Event) string { return e.Regarding.Name }),
		"regarding.uid":             selectable(func(e *eventsv1.Event) string { return string(e.Regarding.UID) }),
		"regarding.apiVersion":      selectable(func(e *eventsv1.Event) string { return e.Regarding.APIVersion }),
		"regarding.resourceVersion": selectable(func(e *eventsv1.Event) string { return e.Regarding.ResourceVersion }),
		"regarding.fieldPath":       selectable(func(e *eventsv1.Event) string { return e.Regarding.FieldPath }),
		"reason":                    selectable(func(e *eventsv1.Event) string { return e.Reason }),
		"reportingController":       selectable(func(e *eventsv1.Event) string { return e.ReportingController }),
		"type":                      selectable(func(e *eventsv1.Event) string { return e.Type }),
	}
	k.Columns, k.Cells = core.EventColumns(), func(o resource.Object) []any { return core.EventCells(toCore(o.(*eventsv1.Event))) }
	k.NoNameColumn = true
	k.Rules = resource.Typed[*eventsv1.Event]{
		Validate:       validate,
		ValidateUpdate: validateUpdate,
		CreateOnUpdate: true,
	}.Rules()
	k.StoredAs = &resource.Conversion{
		GVK:  corev1.SchemeGroupVersion.WithKind("Event"),
		To:   func(o resource.Object) resource.Object { return toCore(o.(*eventsv1.Event)) },
		From: func(o resource.Object) resource.Object { return fromCore(o.(*corev1.Event)) },
	}
	return k
}

func selectable(f func(*eventsv1.Event) string) func(resource.Object) string {
	return func(o resource.Object) string { return f(o.(*eventsv1.Event)) }
}

// toCore and fromCore convert between the two forms, field by field. Fields that the newer form
// calls deprecated are those that the older form uses.
func toCore(e *eventsv1.Event) *corev1.Event {
	out := &corev1.Event{
		ObjectMeta:          e.ObjectMeta,
		InvolvedObject:      e.Regarding,
		Related:             e.Related,
		Reason:              e.Reason,
		Message:             e.Note,
		Type:                e.Type,
		EventTime:           e.EventTime,
		Action:              e.Action,
		ReportingController: e.ReportingController,
		ReportingInstance:   e.ReportingInstance,
		Source:              e.DeprecatedSource,
		FirstTimestamp:      e.DeprecatedFirstTimestamp,
		LastTimestamp:       e.DeprecatedLastTimestamp,
		Count:               e.DeprecatedCount,
	}
	if e.Series != nil {
		out.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return out
}

func fromCore(e *corev1.Event) *eventsv1.Event {
	out := &eventsv1.Event{
		ObjectMeta:               e.ObjectMeta,
		Regarding:                e.InvolvedObject,
		Related:                  e.Related,
		Reason:                   e.Reason,
		Note:                     e.Message,
		Type:                     e.Type,
		EventTime:                e.EventTime,
		Action:                   e.Action,
		ReportingController:      e.ReportingController,
		ReportingInstance:        e.ReportingInstance,
		DeprecatedSource:         e.Source,
		DeprecatedFirstTimestamp: e.FirstTimestamp,
		DeprecatedLastTimestamp:  e.LastTimestamp,
		DeprecatedCount:          e.Count,
	}
	if e.Series != nil {
		out.Series = &eventsv1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return out
}
