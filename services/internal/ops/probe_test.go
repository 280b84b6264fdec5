package ops_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"keelson.dev/services/internal/ops"
)

// A probe reports what is lost and what is back, and asking it never waits.
func TestProbe(t *testing.T) {
	var lost atomic.Bool
	var hung, given atomic.Int32 // looks that began to hang, and that were given up
	p := ops.NewProbe(func(ctx context.Context) error {
		if lost.Load() {
			hung.Add(1)
			defer given.Add(1)
			<-ctx.Done() // as of one that hangs
			return errors.New("no answer")
		}
		return nil
	})
	if err := p.Check(t.Context()); err == nil {
		t.Error("well before the first look")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	await := func(what string, want bool) {
		t.Helper()
		deadline := time.After(time.Minute)
		for tick := time.NewTicker(time.Millisecond); ; {
			err := p.Check(t.Context())
			if (err == nil) == want {
				return
			}
			select {
			case <-deadline:
				t.Fatalf("%s: %v", what, err)
			case <-tick.C:
			}
		}
	}
	await("there", true)
	lost.Store(true)
	await("lost", false)
	for { // asked while a look hangs, and answered while the same look does
		n := hung.Load()
		if given.Load() >= n {
			<-time.After(time.Millisecond)
			continue
		}
		_ = p.Check(t.Context())
		if given.Load() < n {
			break
		}
		if n > 10 {
			t.Fatal("asking waits for a look that hangs")
		}
	}
	lost.Store(false)
	await("back", true)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNote(t *testing.T) {
	s := ops.New()
	s.Note("leadership", func() string { return "standby" })
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz?verbose", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "[+]leadership ok: standby\n") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
