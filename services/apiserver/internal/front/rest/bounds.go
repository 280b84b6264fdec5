package rest

import (
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Bounds on what is in progress at once. A request above them is told to try again later;
// requests are never queued.
const (
	maxRequests  = 4096      // neither watches nor streams
	maxLong      = 65536     // watches and streams
	maxBodyBytes = 512 << 20 // total size of bodies larger than preauthorize
)

// gauge counts what is in progress, up to a bound.
type gauge struct {
	n   atomic.Int64
	max int64
}

// enter adds n to the gauge and returns true, unless that would exceed the bound.
func (g *gauge) enter(n int64) bool {
	if g.n.Add(n) > g.max {
		g.n.Add(-n)
		return false
	}
	return true
}

func (g *gauge) leave(n int64) { g.n.Add(-n) }

// bounds are the gauges of a Handler.
type bounds struct{ requests, long, bodies gauge }

func newBounds() *bounds {
	b := &bounds{}
	b.requests.max, b.long.max, b.bodies.max = maxRequests, maxLong, maxBodyBytes
	return b
}

// errBusy returns a TooManyRequests error (429) with Retry-After.
func errBusy(what string) error {
	return apierrors.NewTooManyRequests("too many "+what+" in progress, please try again later", 1)
}
