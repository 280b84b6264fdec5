package rest

import (
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// The bounds of what is under way at once. A request above them is told to come
// back; nobody waits in a queue.
const (
	maxRequests  = 4096      // neither watches nor streams
	maxLong      = 65536     // watches and streams
	maxBodyBytes = 512 << 20 // of bodies larger than preauthorize
)

// gauge counts what is under way, up to a bound.
type gauge struct {
	n   atomic.Int64
	max int64
}

// enter adds to the gauge unless that would exceed its bound.
func (g *gauge) enter(n int64) bool {
	if g.n.Add(n) > g.max {
		g.n.Add(-n)
		return false
	}
	return true
}

func (g *gauge) leave(n int64) { g.n.Add(-n) }

// bounds of a Handler.
type bounds struct{ requests, long, bodies gauge }

func newBounds() *bounds {
	b := &bounds{}
	b.requests.max, b.long.max, b.bodies.max = maxRequests, maxLong, maxBodyBytes
	return b
}

// errBusy is 429 with a time to come back.
func errBusy(what string) error {
	return apierrors.NewTooManyRequests("too many "+what+" are under way, please try again later", 1)
}
