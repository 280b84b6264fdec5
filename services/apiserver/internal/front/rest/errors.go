package rest

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// errNotFound is returned for a path that does not exist.
func errNotFound() error {
	return apierrors.NewGenericServerResponse(http.StatusNotFound, "", schema.GroupResource{}, "", "", 0, false)
}

// errMethod is returned for a method that a path does not serve.
func errMethod() error {
	return apierrors.NewGenericServerResponse(http.StatusMethodNotAllowed, "", schema.GroupResource{}, "", "", 0, false)
}

func errStatus(code int, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	}}
}

// errNothingNamed returns the 406 error for an Accept header without any supported media type.
func errNothingNamed(types []string) error {
	return apierrors.NewGenericServerResponse(http.StatusNotAcceptable, "", schema.GroupResource{}, "",
		"406: Not Acceptable\n\nAvailable representations: "+join(types), 0, false)
}

// errNotAcceptable returns the 406 error for media types that this resource does not serve.
func errNotAcceptable(types []string) error {
	return errStatus(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable,
		"only the following media types are accepted: "+join(types))
}

// errUnsupported returns the 415 error for a body in an unknown format.
func errUnsupported(types []string) error {
	return errStatus(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		"the body of the request was in an unknown format - accepted media types include: "+join(types))
}

// errPatchType returns the 415 error for an unknown kind of patch.
func errPatchType() error {
	return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", schema.GroupResource{}, "",
		"415: Unsupported Media Type", 0, false)
}

// errEncoding returns the 415 error for a compressed body.
func errEncoding(encoding string) error {
	return errStatus(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		"the body of the request has the content encoding "+strconv.Quote(encoding)+"; send it uncompressed")
}

func errIncludeObject(value string) error {
	return apierrors.NewBadRequest("includeObject: Invalid value: " + strconv.Quote(value) + ": must be 'Metadata', 'Object', 'None', or empty")
}

func join(s []string) string {
	out := ""
	for i, t := range s {
		if i > 0 {
			out += ", "
		}
		out += t
	}
	return out
}

// status converts any error to the Status that the client gets.
func status(err error) *metav1.Status {
	var with apierrors.APIStatus
	if errors.As(err, &with) {
		s := with.Status()
		if s.Status == "" {
			s.Status = metav1.StatusFailure
		}
		if s.Code == 0 {
			s.Code = http.StatusInternalServerError
		}
		return &s
	}
	var s metav1.Status
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		s = apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0).Status()
	case errors.Is(err, context.Canceled):
		s = apierrors.NewGenericServerResponse(http.StatusServiceUnavailable, "", schema.GroupResource{}, "", "the request was cancelled", 0, true).Status()
	default:
		s = apierrors.NewInternalError(err).Status()
	}
	return &s
}

// fail sends an error.
func (x *exchange) fail(err error) {
	s := status(err)
	if x.wroteHeader {
		// Too late for another response: end the stream as incomplete.
		x.broken = true
		return
	}
	if s.Code == http.StatusTooManyRequests || s.Code == http.StatusServiceUnavailable || s.Code == http.StatusGatewayTimeout {
		repeat := s.Code != http.StatusServiceUnavailable || x.h.refusals.mayRepeat(x.r, time.Now())
		if d := s.Details; d != nil && d.RetryAfterSeconds > 0 && repeat {
			x.Header().Set("Retry-After", strconv.Itoa(int(d.RetryAfterSeconds)))
			if s.Code == http.StatusServiceUnavailable {
				// A new connection may reach another apiserver.
				x.Header().Set("Connection", "close")
			}
		}
	}
	x.writeStatus(s)
}

// refuse sends an error that the front has found, but only to users who may make the request.
// Others learn no more than that the request is forbidden.
func (x *exchange) refuse(verb string, err error) {
	if denied := x.h.api.Authorize(x.ctx, verb, x.target()); denied != nil {
		err = denied
	}
	x.fail(err)
}
