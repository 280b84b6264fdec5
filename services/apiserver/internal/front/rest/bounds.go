package rest

import (
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/internal/inflight"
)

// Bounds on what is in progress at once. A request above them is told to try again later;
// requests are never queued.
const (
	maxRequests  = 4096      // neither watches nor streams
	maxLong      = 65536     // watches and streams
	maxBodyBytes = 512 << 20 // total size of bodies larger than preauthorize
)

// bounds are the gauges of a Handler.
type bounds struct{ requests, long, bodies *inflight.Gauge }

func newBounds() *bounds {
	return &bounds{
		requests: inflight.NewGauge(maxRequests), long: inflight.NewGauge(maxLong), bodies: inflight.NewGauge(maxBodyBytes),
	}
}

// errBusy returns a TooManyRequests error (429) with Retry-After.
func errBusy(what string) error {
	return apierrors.NewTooManyRequests("too many "+what+" in progress, please try again later", 1)
}
