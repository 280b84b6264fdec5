package pipeline_test

import (
	"context"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
)

// leaderless is a store that loses its quorum when gone is set.
type leaderless struct {
	store.Store
	gone bool
}

func (l *leaderless) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	if l.gone {
		return nil, fmt.Errorf("commit: %w", store.ErrUnavailable)
	}
	return l.Store.Commit(ctx, writes)
}

// TestNoQuorum checks that a store without a quorum is reported as a temporary condition.
func TestNoQuorum(t *testing.T) {
	var st *leaderless
	f := newFixture(t, func(c *pipeline.Config) {
		st = &leaderless{Store: c.Lasting.Store}
		c.Lasting.Store = st
	})
	st.gone = true
	_, err := f.create(configMap("a"))
	wantStatus(t, err, 503, metav1.StatusReasonServiceUnavailable, "too few members of the store can be reached")
}
