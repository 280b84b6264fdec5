package main

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
)

// The way down, from the signal on:
//
//  1. Readiness fails: /readyz, the gRPC health service. Everything is served.
//  2. The address goes from the Service default/kubernetes.
//  3. The stores' leaderships go to others, and balancers have --shutdown-delay to
//     look.
//  4. The fronts take no new connection, tell clients to go elsewhere, end watches
//     and tunnels, and answer what they have begun.
//  5. A member whose place is being taken away keeps its votes until it is gone.
//  6. The stores, and then what the members say to each other, end.

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
		slog.WarnContext(ctx, "leaderships were not handed over in time")
	}
	<-seen
}

// departTime bounds step 5. Who is not told in time is started again, and is a member
// then.
const departTime = 15 * time.Second

// depart is step 5.
func depart(ctx context.Context, m *members, places ...pipeline.Place) {
	if m == nil || m.service == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, departTime)
	defer cancel()
	m.service.Depart(ctx, func() bool { return slices.ContainsFunc(places, leadsPlace) }, func(ctx context.Context) {
		handedOver := make(chan struct{})
		go func() {
			defer close(handedOver)
			for _, p := range places {
				if leadsPlace(p) {
					giveUp(p.Store)
				}
			}
		}()
		select {
		case <-handedOver:
		case <-ctx.Done():
		}
	})
}

func leadsPlace(p pipeline.Place) bool {
	s, ok := store.As[leader](p.Store)
	return ok && s.Leads()
}

// leader is a store whose members elect one of them.
type leader interface {
	// Leads reports whether this member leads, as far as it knows.
	Leads() bool
	// HandOver makes another the leader, if this one leads and there is another.
	HandOver() error
}

var (
	_ leader = (*etcd.Embedded)(nil)
	_ leader = (*raft.Store)(nil)
)

func giveUp(s store.Store) {
	leader, ok := store.As[leader](s)
	if !ok {
		return
	}
	if err := leader.HandOver(); err != nil {
		slog.WarnContext(context.Background(), "leadership was not handed over", "error", err)
	}
}
