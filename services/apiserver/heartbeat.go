package main

import (
	"context"
	"time"

	"keelson.dev/services/apiserver/internal/tunnel"
)

// Nodes renew their Leases every 2 s, and less often where there are many of them:
// above 1,000 nodes the interval grows with their number, so that 500 renew in a
// second, up to the 10 s that Kubernetes' own nodes take, above 5,000.
const (
	shortestHeartbeat = 2  // seconds
	longestHeartbeat  = 10 // seconds
	heartbeatsASecond = 500
	recount           = 5 * time.Second
)

// heartbeatSeconds returns the interval at which each of so many nodes renews its Lease.
func heartbeatSeconds(nodes int) int32 {
	want := (nodes + heartbeatsASecond - 1) / heartbeatsASecond
	return int32(min(max(want, shortestHeartbeat), longestHeartbeat))
}

// setHeartbeats sends the nodes their interval as their number changes, until ctx ends.
func setHeartbeats(ctx context.Context, nodes func() int, t *tunnel.Server) error {
	ticker := time.NewTicker(recount)
	defer ticker.Stop()
	for {
		t.SetHeartbeat(heartbeatSeconds(nodes()))
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
