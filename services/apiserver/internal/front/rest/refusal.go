package rest

import (
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Kubernetes' clients obey Retry-After up to ten times (client-go's rest.Request). If another
// apiserver can serve the request, a few attempts reach it; if none can, the user would wait ten
// seconds for the same error. A request that was already refused twice within a few seconds is
// therefore refused without Retry-After.
const (
	maxRefused = 2
	refusedFor = 5 * time.Second
	// maxRefusals bounds the number of requests that are remembered.
	maxRefusals = 4096
)

// refusals holds the requests that were refused recently.
type refusals struct {
	mu   sync.Mutex
	seen map[refusedRequest]refused
}

// refusedRequest identifies a request, without its body.
type refusedRequest struct{ host, agent, method, uri string }

type refused struct {
	times int
	since time.Time
}

// mayRepeat records a refusal and reports whether the client should retry.
func (s *refusals) mayRepeat(r *http.Request, now time.Time) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	key := refusedRequest{host, cut(r.UserAgent()), r.Method, cut(r.URL.RequestURI())}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.seen[key]
	if now.Sub(was.since) > refusedFor {
		was = refused{since: now}
	}
	was.times++
	if s.seen == nil || len(s.seen) >= maxRefusals {
		s.seen = map[refusedRequest]refused{} // forgotten clients retry twice more
	}
	s.seen[key] = was
	return was.times <= maxRefused
}

// cut returns a copy of the beginning of s. A substring would keep all of s in memory, which may
// have up to maxHeaderBytes.
func cut(s string) string { return strings.Clone(s[:min(len(s), 256)]) }
