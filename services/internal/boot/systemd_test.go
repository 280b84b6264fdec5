package boot

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"keelson.dev/services/internal/ops"
)

// supervised runs a service as systemd does, with a watchdog of 20 ms, and returns what it
// tells.
func supervised(t *testing.T, run Run) (told <-chan string, stop func() int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	out := make(chan string, 1000)
	done := make(chan struct{})
	t.Cleanup(func() { socket.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 256)
		for {
			n, err := socket.Read(b)
			if err != nil {
				return
			}
			out <- string(b[:n])
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int, 1)
	go func() {
		var log bytes.Buffer
		code <- Execute(ctx, "test", nil, &log, func(*pflag.FlagSet) Run { return run })
	}()
	return out, func() int {
		cancel()
		return <-code
	}
}

func next(t *testing.T, told <-chan string) string {
	t.Helper()
	select {
	case s := <-told:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("systemd was told nothing")
		return ""
	}
}

func TestSystemdIsTold(t *testing.T) {
	told, stop := supervised(t, func(_ context.Context, g *Group) error {
		g.Go("work", func(ctx context.Context) error {
			if os.Getenv("NOTIFY_SOCKET")+os.Getenv("WATCHDOG_USEC") != "" {
				return errors.New("children inherit the socket")
			}
			<-ctx.Done()
			return nil
		})
		return nil
	})
	if s := next(t, told); s != "READY=1" {
		t.Fatalf("first %s", s)
	}
	for range 3 {
		if s := next(t, told); s != "WATCHDOG=1" {
			t.Fatalf("then %s", s)
		}
	}
	if code := stop(); code != 0 {
		t.Fatalf("code %d", code)
	}
	for s := "WATCHDOG=1"; s != "STOPPING=1"; {
		if s = next(t, told); s != "WATCHDOG=1" && s != "STOPPING=1" {
			t.Fatalf("then %s", s)
		}
	}
}

// A service whose health check fails sends no sign of life, so systemd restarts it.
func TestTheWatchdogFollowsTheHealthCheck(t *testing.T) {
	var sick atomic.Bool
	checked := make(chan struct{}, 1000)
	told, stop := supervised(t, func(_ context.Context, g *Group) error {
		g.Alive(func(context.Context) error {
			if !sick.Load() {
				return nil
			}
			checked <- struct{}{}
			return errors.New("stuck")
		})
		g.Go("work", func(ctx context.Context) error { <-ctx.Done(); return nil })
		return nil
	})
	for range 2 {
		next(t, told)
	}
	sick.Store(true)
	<-checked
	for len(told) > 0 {
		<-told
	}
	for range 3 {
		<-checked
	}
	if n := len(told); n != 0 {
		t.Errorf("%d signs of life of a service that is stuck", n)
	}
	stop()
}

func TestWithoutSystemd(t *testing.T) {
	for _, path := range []string{"", "relative"} {
		t.Setenv("NOTIFY_SOCKET", path)
		if s := startedBySystemd(); s != nil {
			t.Errorf("%q: %+v", path, s)
		}
	}
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", "1")
	if s := startedBySystemd(); s == nil || s.every != 0 {
		t.Errorf("the watchdog of another process: %+v", s)
	}
}

// A service of which one loop hangs sends no sign of life any more.
func TestTheWatchdogNoticesALoopThatHangs(t *testing.T) {
	progress := &ops.Progress{Patience: time.Millisecond}
	wedge, failed := make(chan struct{}), make(chan struct{}, 1000)
	told, stop := supervised(t, func(_ context.Context, g *Group) error {
		status := ops.New()
		status.Health("loop", progress.Check)
		g.Alive(func(ctx context.Context) error {
			err := status.CheckHealth(ctx)
			if err != nil {
				failed <- struct{}{}
			}
			return err
		})
		g.Go("loop", func(ctx context.Context) error {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-wedge:
					progress.Begin()
					<-ctx.Done() // a step that does not end
					return nil
				case <-tick.C:
					progress.Begin()
					progress.End()
				}
			}
		})
		return nil
	})
	for seen := 0; seen < 3; {
		if next(t, told) == "WATCHDOG=1" {
			seen++
		}
	}
	close(wedge)
	deadline := time.After(30 * time.Second)
	for progress.Check(t.Context()) == nil {
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatal("the loop does not hang")
		}
	}
	for len(failed) > 0 { // of a step that was not scheduled in time
		<-failed
	}
	<-failed
	for len(told) > 0 {
		<-told
	}
	for range 3 {
		<-failed
	}
	if n := len(told); n != 0 {
		t.Errorf("%d signs of life of a service with a loop that hangs", n)
	}
	stop()
}
