package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"keelson.dev/services/apiserver/internal/front/rest/route"
)

// checkTimeout bounds a health check.
const checkTimeout = 10 * time.Second

// healthPaths adds /healthz, /livez and /readyz, and a path for each of their checks.
func (h *Handler) healthPaths(paths map[string]http.Handler) {
	all := h.cfg.Checks
	if !slices.ContainsFunc(all, func(c Check) bool { return c.Name == "ping" }) {
		ping := Check{Name: "ping", Run: func(context.Context) error { return nil }, Live: true}
		all = append([]Check{ping}, all...)
	}
	live := slices.DeleteFunc(slices.Clone(all), func(c Check) bool { return !c.Live })
	for name, checks := range map[string][]Check{"healthz": all, "readyz": all, "livez": live} {
		paths["/"+name] = h.healthHandler(name, checks, true)
		for _, c := range checks {
			paths["/"+name+"/"+c.Name] = h.healthHandler(name, []Check{c}, false)
		}
	}
}

// healthHandler responds as Kubernetes does: "ok", or a line for each check. The path of a single
// check is not a summary: it returns no lines while the check passes.
func (h *Handler) healthHandler(name string, checks []Check, summary bool) http.Handler {
	// Load balancers probe several times a second, so only changes are logged.
	var mu sync.Mutex
	failing := map[string]bool{}
	note := func(ctx context.Context, check string, err error) {
		mu.Lock()
		was := failing[check]
		failing[check] = err != nil
		mu.Unlock()
		switch {
		case err != nil && !was:
			h.log.WarnContext(ctx, "health check failed", "path", "/"+name, "check", check, "error", err)
		case err == nil && was:
			h.log.InfoContext(ctx, "health check passes again", "path", "/"+name, "check", check)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		verbose := false
		excluded := map[string]bool{}
		route.Each(r.URL.RawQuery, func(key, value string) bool {
			switch key {
			case "verbose":
				verbose = summary
			case "exclude":
				excluded[value] = true
			}
			return true
		})
		var text strings.Builder
		failed := false
		for _, c := range checks {
			if excluded[c.Name] {
				delete(excluded, c.Name)
				fmt.Fprintf(&text, "[+]%s excluded: ok\n", c.Name)
				continue
			}
			ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
			err := c.Run(ctx)
			cancel()
			if err == nil || r.Context().Err() == nil { // a client that disconnected is not a failure
				note(r.Context(), c.Name, err)
			}
			if err != nil {
				failed = true
				fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", c.Name)
				continue
			}
			fmt.Fprintf(&text, "[+]%s ok\n", c.Name)
		}
		for check := range excluded {
			fmt.Fprintf(&text, "warn: some health checks cannot be excluded: no matches for %q\n", check)
		}
		header := w.Header()
		header.Set("Content-Type", "text/plain; charset=utf-8")
		if summary || failed {
			header.Set("X-Content-Type-Options", "nosniff")
		}
		switch {
		case failed:
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, "%s%s check failed\n", text.String(), name)
		case verbose:
			fmt.Fprintf(w, "%s%s check passed\n", text.String(), name)
		default:
			fmt.Fprint(w, "ok")
		}
	})
}

// debugPaths adds the profiler, which is authorized like any other path.
func (h *Handler) debugPaths(paths map[string]http.Handler) {
	index := http.HandlerFunc(pprof.Index)
	paths["/debug/pprof"] = http.RedirectHandler("/debug/pprof/", http.StatusFound)
	for _, profile := range []string{"allocs", "block", "goroutine", "heap", "mutex", "threadcreate"} {
		paths["/debug/pprof/"+profile] = index
	}
	paths["/debug/pprof/cmdline"] = http.HandlerFunc(pprof.Cmdline)
	paths["/debug/pprof/profile"] = http.HandlerFunc(pprof.Profile)
	paths["/debug/pprof/symbol"] = http.HandlerFunc(pprof.Symbol)
	paths["/debug/pprof/trace"] = http.HandlerFunc(pprof.Trace)
}

// serveRoot lists the paths.
func (h *Handler) serveRoot(w http.ResponseWriter, r *http.Request) {
	paths := append([]string{"/"}, h.discovery.Paths()...)
	for path := range h.paths {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	writeIndented(w, http.StatusOK, map[string][]string{"paths": paths})
}

func writeIndented(w http.ResponseWriter, code int, v any) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(text)
}
