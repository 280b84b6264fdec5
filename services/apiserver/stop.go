package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
)

// The way down, from the signal on:
//
//  1. Readiness fails: /readyz, the gRPC health service. Everything is served.
//  2. The address goes from the Service default/kubernetes.
//  3. The stores' leaderships go to others, and balancers have --shutdown-delay to
//     look.
//  4. The fronts take no new connection, tell clients to go elsewhere, end watches
//     and tunnels, and answer what they have begun.
//  5. The stores, and then what the members say to each other, end.

// handOverTime bounds the handover: the others may all be ending.
const handOverTime = 2 * time.Second

// handOver is step 3. What is asked meanwhile is answered as always.
func handOver(ctx context.Context, cfg *config, m *members, places ...pipeline.Place) {
	if m == nil && len(cfg.etcdServers) == 0 {
		return // there is nobody else
	}
	seen := time.After(cfg.shutdownDelay)
	ctx, cancel := context.WithTimeout(ctx, handOverTime)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for _, p := range places {
			wg.Go(func() { giveUp(p.Store) })
		}
		wg.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		slog.Warn("leaderships were not handed over in time")
	}
	<-seen
}

func giveUp(s store.Store) {
	leader, ok := store.As[interface{ HandOver() error }](s)
	if !ok {
		return
	}
	if err := leader.HandOver(); err != nil {
		slog.Warn("leadership was not handed over", "error", err)
	}
}
