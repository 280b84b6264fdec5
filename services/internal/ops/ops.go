// Package ops is the operations listener of every service: /metrics, /healthz,
// /readyz?verbose and /debug/pprof.
//
// It must never serve anything that is secret or that changes state: it authenticates no
// client, and is meant for loopback or an operator's network. Profiles are served to this
// machine only, whatever the listener's address: they show the program's internals and cost
// CPU.
package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"keelson.dev/services/internal/connlimit"
)

// Check returns nil if what it checks is healthy, and otherwise the reason. All checks of a
// request together have 3 s.
type Check func(ctx context.Context) error

// checkPatience bounds all checks of one request together.
const checkPatience = 3 * time.Second

// Server is an operations listener.
type Server struct {
	registry *prometheus.Registry
	mu       sync.Mutex
	ready    []named
	health   []named
	notes    []note
}

type note struct {
	name string
	text func() string
}

type named struct {
	name  string
	check Check
}

// New returns a server without checks, with metrics of the Go runtime and the process.
func New() *Server {
	s := &Server{registry: prometheus.NewRegistry()}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s
}

// Registry returns the registry whose metrics /metrics serves.
func (s *Server) Registry() *prometheus.Registry { return s.registry }

// Ready adds a check to /readyz, which must pass before the service is sent work.
func (s *Server) Ready(name string, check Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = append(s.ready, named{name, check})
}

// Note adds a line to /readyz?verbose that never fails: what the service does at the
// moment, as text returns it.
func (s *Server) Note(name string, text func() string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, note{name, text})
}

// Health adds a check to /healthz, which fails only if a restart is the remedy.
func (s *Server) Health(name string, check Check) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health = append(s.health, named{name, check})
}

// ReadyWhen returns a Check that passes once done is closed.
func ReadyWhen(done <-chan struct{}) Check {
	return func(context.Context) error {
		select {
		case <-done:
			return nil
		default:
			return errors.New("not yet")
		}
	}
}

// Handler returns the handler of all paths.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.Handle("GET /healthz", s.HealthHandler())
	mux.Handle("GET /readyz", s.ReadyHandler())
	for path, h := range map[string]http.HandlerFunc{
		"": pprof.Index, "cmdline": pprof.Cmdline, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace,
	} {
		mux.Handle("/debug/pprof/"+path, local(h))
	}
	return mux
}

// local restricts h to clients on this machine.
func local(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A unix socket shows no address.
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "profiles are served to this machine only, over loopback or a unix socket", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// HealthHandler returns the handler of /healthz (and, in the apiserver, /livez): 200, or 500
// if a health check fails.
func (s *Server) HealthHandler() http.Handler {
	return s.checks("healthz", func() []named { return s.health })
}

// ReadyHandler returns the handler of /readyz: 200, or 500 if a health or ready check fails.
func (s *Server) ReadyHandler() http.Handler {
	return s.checks("readyz", func() []named { return slices.Concat(s.health, s.ready) })
}

// CheckReady runs the health and ready checks. The error names the first that fails.
func (s *Server) CheckReady(ctx context.Context) error {
	s.mu.Lock()
	list := slices.Concat(s.health, s.ready)
	s.mu.Unlock()
	return first(ctx, list)
}

// CheckHealth runs the health checks. The error names the first that fails.
func (s *Server) CheckHealth(ctx context.Context) error {
	s.mu.Lock()
	list := slices.Clone(s.health)
	s.mu.Unlock()
	return first(ctx, list)
}

// first runs checks until one fails.
func first(ctx context.Context, list []named) error {
	for _, c := range list {
		if err := c.check(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// checks answers as Kubernetes' own health endpoints do: "ok", or the list of
// checks when one fails or ?verbose is given; ?exclude=NAME leaves one out.
func (s *Server) checks(path string, list func() []named) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkPatience)
		defer cancel()
		s.mu.Lock()
		all, notes := slices.Clone(list()), slices.Clone(s.notes)
		s.mu.Unlock()
		query := r.URL.Query()
		excluded := query["exclude"]
		_, verbose := query["verbose"]
		var text strings.Builder
		text.WriteString("[+]ping ok\n")
		failed := false
		for _, c := range all {
			if slices.Contains(excluded, c.name) {
				fmt.Fprintf(&text, "[+]%s excluded: ok\n", c.name)
				continue
			}
			if err := c.check(ctx); err != nil {
				failed = true
				fmt.Fprintf(&text, "[-]%s failed: %v\n", c.name, err)
				continue
			}
			fmt.Fprintf(&text, "[+]%s ok\n", c.name)
		}
		for _, n := range notes {
			fmt.Fprintf(&text, "[+]%s ok: %s\n", n.name, n.text())
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		switch {
		case failed:
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, "%s%s check failed\n", text.String(), path)
		case verbose:
			fmt.Fprintf(w, "%s%s check passed\n", text.String(), path)
		default:
			fmt.Fprint(w, "ok")
		}
	})
}

// Serve listens on address, host:port or unix:///path, and serves until ctx ends. Only this
// user may connect to a unix socket.
func (s *Server) Serve(ctx context.Context, address string) error {
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, address = "unix", path
		_ = os.Remove(path) // a process that was killed has left it
	}
	l, err := listen(ctx, network, address)
	if err != nil {
		return fmt.Errorf("operations listener: %w", err)
	}
	slog.InfoContext(ctx, "operations listener is up", "address", l.Addr().String())
	return s.ServeListener(ctx, l)
}

// listen opens the listener. Only this user may connect to a unix socket.
func listen(ctx context.Context, network, address string) (net.Listener, error) {
	if network == "unix" {
		defer syscall.Umask(syscall.Umask(0o177))
	}
	return new(net.ListenConfig).Listen(ctx, network, address)
}

// ServeListener serves on l until ctx ends, and closes it. Connections are bounded to 256.
func (s *Server) ServeListener(ctx context.Context, l net.Listener) error {
	l = connlimit.Wrap(l, connlimit.Limits{Name: "ops", Total: 256, Unknown: 64, UnknownPerAddress: 16})
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("operations listener: %w", err)
	}
	return nil
}
