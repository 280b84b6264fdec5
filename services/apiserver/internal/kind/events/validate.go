package events

import (
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/core"
)

// validate checks what the newer form requires: the fields for what was observed, by whom and
// when, and none of those that only the older form uses. As in Kubernetes, errors use the older
// form's field names.
func validate(o *eventsv1.Event) field.ErrorList {
	var e check.Errors
	if o.EventTime.IsZero() {
		e.Required(field.NewPath("eventTime"), "")
	}
	core.ValidateNewEvent(&e, toCore(o), "reportingController")
	if o.Type != corev1.EventTypeNormal && o.Type != corev1.EventTypeWarning {
		e.Invalid(field.NewPath("type"), "", "has invalid value: "+o.Type)
	}
	unset := func(name string, set bool) {
		if set {
			e.Invalid(field.NewPath(name), "", "needs to be unset")
		}
	}
	unset("firstTimestamp", !o.DeprecatedFirstTimestamp.IsZero())
	unset("lastTimestamp", !o.DeprecatedLastTimestamp.IsZero())
	unset("count", o.DeprecatedCount != 0)
	unset("source", o.DeprecatedSource != corev1.EventSource{})
	if o.Series != nil {
		validateSeries(&e, o.Series)
	}
	return e.List
}

func validateSeries(e *check.Errors, s *eventsv1.EventSeries) {
	if s.Count < 2 {
		e.Invalid(field.NewPath("series", "count"), "", "should be at least 2")
	}
	if s.LastObservedTime.IsZero() {
		e.Required(field.NewPath("series", "lastObservedTime"), "")
	}
}

// validateUpdate only allows changes of the series and the metadata.
func validateUpdate(o, old *eventsv1.Event) field.ErrorList {
	e := check.Errors{List: validate(o)}
	same := func(name string, now, before any) {
		if !equality.Semantic.DeepEqual(now, before) {
			e.Invalid(field.NewPath(name), now, check.Immutable)
		}
	}
	same("involvedObject", o.Regarding, old.Regarding)
	same("reason", o.Reason, old.Reason)
	same("message", o.Note, old.Note)
	same("type", o.Type, old.Type)
	same("eventTime", o.EventTime, old.EventTime)
	same("action", o.Action, old.Action)
	same("related", o.Related, old.Related)
	same("reportingController", o.ReportingController, old.ReportingController)
	same("reportingInstance", o.ReportingInstance, old.ReportingInstance)
	return e.List
}
