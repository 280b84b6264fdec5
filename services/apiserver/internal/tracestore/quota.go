package tracestore

import (
	"sync"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// What a user may export: quotaSpans and quotaBytes per second, in bursts of up to quotaSeconds
// times as much. A service records up to 200 traces a second of its own.
const (
	quotaSpans   = 5_000
	quotaBytes   = 2 << 20
	quotaSeconds = 8
	// quotaUsers bounds the number of users that are remembered. When it is reached, all are
	// forgotten and start with a full quota.
	quotaUsers = 4096
)

// quota limits what each user exports, so that no user displaces the traces of others.
type quota struct {
	mu    sync.Mutex
	users map[string]*spent
}

// spent is what a user has exported recently. It decreases with time.
type spent struct {
	spans, bytes float64
	last         time.Time
}

// take reports whether a user may export that much now, and counts it.
func (q *quota) take(user string, spans int, bytes int64, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.users[user]
	if s == nil {
		if q.users == nil || len(q.users) >= quotaUsers {
			q.users = map[string]*spent{}
		}
		s = &spent{last: now}
		q.users[user] = s
	}
	past := max(0, now.Sub(s.last).Seconds())
	s.last = now
	s.spans = max(0, s.spans-past*quotaSpans)
	s.bytes = max(0, s.bytes-past*quotaBytes)
	if s.spans+float64(spans) > quotaSpans*quotaSeconds || s.bytes+float64(bytes) > quotaBytes*quotaSeconds {
		return false
	}
	s.spans += float64(spans)
	s.bytes += float64(bytes)
	return true
}

// count returns the number of spans.
func count(resources []*tracepb.ResourceSpans) (n int) {
	for _, r := range resources {
		for _, scope := range r.GetScopeSpans() {
			n += len(scope.GetSpans())
		}
	}
	return n
}
