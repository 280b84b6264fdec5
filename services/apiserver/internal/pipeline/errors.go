package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/apistatus"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// optimisticLock is Kubernetes' message for a stale write.
const optimisticLock = "the object has been modified; please apply your changes to the latest version and try again"

func errMethod(t Target, verb string) error {
	gr := t.Resource.GroupResource()
	return apierrors.NewMethodNotSupported(gr, verb)
}

func errConflict(gr schema.GroupResource, name string) error {
	return apierrors.NewConflict(gr, name, errors.New(optimisticLock))
}

// errPlain returns what Kubernetes makes of an error that is not a Status: code 500 without a
// reason, even if the client is at fault.
func errPlain(err error) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error(),
	}}
}

// Fenced returns the Conflict for a writer whose epoch is over.
func Fenced(gr schema.GroupResource, name, message string) *apierrors.StatusError {
	err := apierrors.NewConflict(gr, name, errors.New(message))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: apistatus.CauseFenced, Message: message,
	})
	return err
}

// statusOf converts any error to an *apierrors.StatusError, except those of a context that ended.
func (p *Pipeline) statusOf(ctx context.Context, gr schema.GroupResource, name string, err error) error {
	if err == nil {
		return nil
	}
	var status *apierrors.StatusError
	var expired *watchcache.ExpiredError
	switch {
	case errors.As(err, &status):
		return status
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return err
	case errors.Is(err, store.ErrNotFound):
		return apierrors.NewNotFound(gr, name)
	case errors.Is(err, store.ErrExists):
		return apierrors.NewAlreadyExists(gr, name)
	case errors.Is(err, store.ErrConflict):
		return errConflict(gr, name)
	case errors.Is(err, store.ErrFenced):
		return Fenced(gr, name, "the writer is no longer the leader: a later leader has taken over")
	case errors.Is(err, store.ErrUnknownOutcome):
		// Without Retry-After: Kubernetes' clients retry on their own if it is set, and the
		// second attempt would hide the outcome of the first.
		return apierrors.NewTimeoutError(fmt.Sprintf("the outcome of the write to %s %q is unknown: it may or may not have happened", gr, name), 0)
	case errors.Is(err, store.ErrTooMany):
		return apierrors.NewTooManyRequests("too many writes in flight, please try again later", 1)
	case errors.Is(err, store.ErrNoSpace):
		return apierrors.NewInternalError(store.ErrNoSpace)
	case errors.Is(err, store.ErrCompacted):
		return apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
	case errors.As(err, &expired):
		return apierrors.NewResourceExpired(expired.Error())
	case errors.Is(err, watchcache.ErrSlow):
		return apierrors.NewResourceExpired("the watch fell too far behind; resume it after the last event received")
	case errors.Is(err, watchcache.ErrStopped), errors.Is(err, watchcache.ErrReloaded), errors.Is(err, store.ErrClosed):
		return apierrors.NewServiceUnavailable("the server is shutting down or reloading its state, please try again")
	case errors.Is(err, store.ErrUnavailable):
		return errUnavailable()
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError("the store did not answer in time", 0)
	}
	p.cfg.Log.ErrorContext(ctx, "request failed", "error", err, "resource", gr.String(), "name", name)
	return apierrors.NewInternalError(err)
}

// errUnavailable is returned while the store cannot be reached. Nothing was done, so the client
// may retry, and clients do so on their own if Retry-After is set.
func errUnavailable() error {
	err := apierrors.NewServiceUnavailable(store.ErrUnavailable.Error() + " from this apiserver, please try again")
	err.ErrStatus.Details = &metav1.StatusDetails{RetryAfterSeconds: 1}
	return err
}

// NothingDone reports whether err is that of an apiserver that cannot reach its store.
func NothingDone(err error) bool {
	seconds, ok := apierrors.SuggestsClientDelay(err)
	return ok && seconds > 0 && apierrors.IsServiceUnavailable(err)
}

// errTooLarge is returned for a resource version that the store has not reached.
func errTooLarge(asked, current store.Revision) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", asked, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{
		Type:    metav1.CauseTypeResourceVersionTooLarge,
		Message: "Too large resource version",
	}}
	return err
}
