package ops_test

import (
	"context"
	"testing"
	"time"

	"keelson.dev/services/internal/ops"
)

func TestProgress(t *testing.T) {
	p := &ops.Progress{Patience: time.Hour}
	for range 2 {
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("between two steps: %v", err)
		}
		p.Begin()
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("in a step: %v", err)
		}
		p.End()
	}
	p = &ops.Progress{Patience: time.Nanosecond}
	p.Begin()
	<-time.After(time.Millisecond)
	if p.Check(t.Context()) == nil {
		t.Error("a step that takes too long is healthy")
	}
	p.End()
	if err := p.Check(t.Context()); err != nil {
		t.Errorf("a step that took long has ended: %v", err)
	}
}

// A probe whose look ignores that its time is over is not alive, whatever it found before.
func TestProbeNoticesAHang(t *testing.T) {
	looked, release := make(chan struct{}), make(chan struct{})
	p := ops.NewProbe(func(context.Context) error {
		select {
		case looked <- struct{}{}:
		case <-release:
		}
		return nil
	})
	if err := p.Alive(t.Context()); err != nil {
		t.Errorf("before the first look: %v", err)
	}
	ops.ShortenPatience(p)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	await := func(alive bool) {
		t.Helper()
		deadline := time.After(time.Minute)
		for (p.Alive(ctx) == nil) != alive {
			select {
			case <-time.After(time.Millisecond):
			case <-deadline:
				t.Fatalf("alive is not %v", alive)
			}
		}
	}
	<-looked
	await(true)
	await(false) // the second look
	close(release)
	await(true)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkProgress(b *testing.B) {
	p := &ops.Progress{Patience: time.Hour}
	for b.Loop() {
		p.Begin()
		p.End()
	}
}
