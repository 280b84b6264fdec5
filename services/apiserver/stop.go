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

// After a signal to stop, in this order:
//
//  1. Readiness fails, in /readyz and the gRPC health service. Requests are still served.
//  2. The address is removed from the Service default/kubernetes.
//  3. Other members take over the leadership of the stores, and balancers have
//     --shutdown-delay to notice that readiness fails.
//  4. The fronts accept no new connection, send GOAWAY, end watches and tunnels, and finish
//     the requests in progress.
//  5. A member that is being removed keeps its votes until it has been removed.
//  6. The stores stop, and then the port for peers.

// handOverTime bounds step 3, as all other members may be stopping too.
const handOverTime = 2 * time.Second

// handOver is step 3.
func handOver(ctx context.Context, cfg *config, st *state) {
	if !st.members.shared() {
		return
	}
	seen := time.After(cfg.shutdownDelay)
	ctx, cancel := context.WithTimeout(ctx, handOverTime)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for _, p := range []pipeline.Place{st.lasting, st.transient} {
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

// departTime bounds step 5. A member whose removal is not confirmed in time stops anyway,
// and is still a member when it is started again.
const departTime = 15 * time.Second

// depart is step 5.
func (m *storeMember) depart(ctx context.Context, places ...pipeline.Place) {
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

// leadsPlace reports whether this member leads the place's store, as far as it knows.
func leadsPlace(p pipeline.Place) bool {
	s, ok := store.As[leader](p.Store)
	return ok && s.Leads()
}

// leader is implemented by a store whose members elect a leader.
type leader interface {
	// Leads reports whether this member leads, as far as it knows.
	Leads() bool
	// HandOver makes another member the leader, if this one leads and there is another.
	HandOver() error
}

var (
	_ leader = (*etcd.Embedded)(nil)
	_ leader = (*raft.Store)(nil)
)

// giveUp hands the leadership of s over to another member, if this one leads and s has
// leaders.
func giveUp(s store.Store) {
	leader, ok := store.As[leader](s)
	if !ok {
		return
	}
	if err := leader.HandOver(); err != nil {
		slog.WarnContext(context.Background(), "leadership was not handed over", "error", err)
	}
}
