package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
)

// forgetful is a store that commits and then returns an error.
type forgetful struct {
	store.Store
	why error
}

func (f *forgetful) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	verdicts, err := f.Store.Commit(ctx, writes)
	if f.why == nil || err != nil {
		return verdicts, err
	}
	return []store.Verdict{{Err: f.why}}, nil
}

// TestUnknownOutcomeHasNoRetryAfter checks that the client is not asked to retry: client-go would
// repeat a write that has happened, and report that the object exists or has been modified.
func TestUnknownOutcomeHasNoRetryAfter(t *testing.T) {
	for _, why := range []error{store.ErrUnknownOutcome, context.DeadlineExceeded} {
		var st *forgetful
		f := newFixture(t, func(c *pipeline.Config) {
			st = &forgetful{Store: c.Lasting.Store}
			c.Lasting.Store = st
		})
		st.why = fmt.Errorf("commit: %w", why)
		_, err := f.create(configMap("a"))
		wantStatus(t, err, 504, metav1.StatusReasonTimeout, "")
		var status *apierrors.StatusError
		if !errors.As(err, &status) || status.ErrStatus.Details.RetryAfterSeconds != 0 {
			t.Errorf("%v: %+v has Retry-After", why, status.ErrStatus)
		}
	}
}
