package boot

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// systemd tells systemd about the state of a service of Type=notify (sd_notify(3)): that it
// has started, that it is stopping, and, at half the interval of WatchdogSec, that it is
// alive. The methods of nil do nothing.
type systemd struct {
	socket *net.UnixAddr
	// every is the interval of the watchdog's signs of life; 0 means that there is none.
	every time.Duration
}

// startedBySystemd reads what systemd has put into the environment, and removes it there, so
// that no child speaks for this process. It returns nil outside of systemd.
func startedBySystemd() *systemd {
	path := os.Getenv("NOTIFY_SOCKET")
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	pid := os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		_ = os.Unsetenv(name) // fails for invalid names only
	}
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		return nil
	}
	s := &systemd{socket: &net.UnixAddr{Name: path, Net: "unixgram"}}
	if err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.every = time.Duration(usec) * time.Microsecond / 2
	}
	return s
}

// tell sends one state. A service that cannot reach systemd goes on, and systemd ends it by
// its own rules.
func (s *systemd) tell(ctx context.Context, state string) {
	if s == nil {
		return
	}
	if err := s.send(state); err != nil {
		slog.WarnContext(ctx, "systemd was not told the state of the service", "state", state, "error", err)
	}
}

func (s *systemd) send(state string) error {
	conn, err := net.DialUnix(s.socket.Net, nil, s.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	return err
}

// watch sends signs of life until ctx ends, as long as alive returns nil. systemd restarts a
// service that sends none.
func (s *systemd) watch(ctx context.Context, alive func(context.Context) error) {
	if s == nil || s.every <= 0 {
		return
	}
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		check, cancel := context.WithTimeout(ctx, s.every)
		err := alive(check)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			slog.ErrorContext(ctx, "no sign of life is sent to systemd", "error", err)
		default:
			s.tell(ctx, "WATCHDOG=1")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Alive adds a check that must pass for the service to count as alive. When one keeps
// failing, a restart is the remedy, and systemd's watchdog does it.
func (g *Group) Alive(check func(ctx context.Context) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alive = append(g.alive, check)
}

func (g *Group) checkAlive(ctx context.Context) error {
	g.mu.Lock()
	checks := g.alive[:len(g.alive):len(g.alive)]
	g.mu.Unlock()
	for _, check := range checks {
		if err := check(ctx); err != nil {
			return fmt.Errorf("health check: %w", err)
		}
	}
	return nil
}
