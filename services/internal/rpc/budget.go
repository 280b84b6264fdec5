package rpc

import (
	"fmt"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/apistatus"
)

// budget bounds the bytes of messages in flight, of the server and of each user.
type budget struct {
	max   int64
	total atomic.Int64

	mu    sync.Mutex
	users map[string]int64
}

func newBudget(limit int64) *budget { return &budget{max: limit, users: map[string]int64{}} }

// take reserves n bytes for a user whose limit is limit bytes.
func (b *budget) take(user string, limit, n int64) error {
	if b.total.Add(n) > b.max {
		b.total.Add(-n)
		return busy("this server's")
	}
	if n <= smallMessage {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users[user]+n > limit {
		b.total.Add(-n)
		return busy(fmt.Sprintf("user %q's", user))
	}
	b.users[user] += n
	return nil
}

// give returns what take reserved.
func (b *budget) give(user string, n int64) {
	b.total.Add(-n)
	if n <= smallMessage {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.users[user] -= n; b.users[user] <= 0 {
		delete(b.users, user)
	}
}

// busy returns a 429 with Retry-After.
func busy(whose string) error {
	return apistatus.ToGRPC(&apierrors.NewTooManyRequests(whose+" requests in flight are too large together, please try again later", 1).ErrStatus)
}
