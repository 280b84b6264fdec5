package rest

import (
	"sync/atomic"
	"time"
)

// metrics of the front.
type metrics struct {
	watches, streams, panics atomic.Int64
}

func newMetrics() *metrics { return &metrics{} }

func (m *metrics) observe(x *exchange, took time.Duration) {}
