package rest

import (
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A client of Kubernetes obeys Retry-After ten times (client-go's rest.Request). Where
// another apiserver may do better, a few attempts find it; where none can, a person
// would wait for ten seconds to hear the same. So a request that was refused twice
// within some seconds is refused without a time to try again after.
const (
	maxRefused = 2
	refusedFor = 5 * time.Second
	// maxRefusals bounds how many requests are remembered.
	maxRefusals = 4096
)

// refusals are the requests that were refused lately.
type refusals struct {
	mu   sync.Mutex
	seen map[refusedRequest]refused
}

// refusedRequest identifies a request without its body.
type refusedRequest struct{ host, agent, method, uri string }

type refused struct {
	times int
	since time.Time
}

// mayRepeat records a refusal and reports whether the client should try again.
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
		s.seen = map[refusedRequest]refused{} // forgotten clients try twice more
	}
	s.seen[key] = was
	return was.times <= maxRefused
}

// cut bounds what is remembered of a text. It copies: a part of a string keeps all of it
// in memory, here up to maxHeaderBytes.
func cut(s string) string { return strings.Clone(s[:min(len(s), 256)]) }
