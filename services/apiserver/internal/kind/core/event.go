package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// EventTTLSeconds is how long an event is kept after its last write.
const EventTTLSeconds = 3600

// Event is the row of events. The group events.k8s.io shows the same objects in
// a newer form.
func Event() *resource.Kind {
	k := row.Namespaced[corev1.Event, corev1.EventList](corev1.SchemeGroupVersion, "events", "events")
	k.ShortNames = []string{"ev"}
	k.NoGeneration = true
	k.TTLSeconds = EventTTLSeconds
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
	k.Rules = resource.Typed[*corev1.Event]{CreateOnUpdate: true}.Rules()
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
