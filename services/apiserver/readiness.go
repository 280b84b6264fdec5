package main

import (
	"context"
	"slices"
	"strings"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"keelson.dev/services/apiserver/internal/front/rest"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/reach"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
)

// startChecks looks after what this apiserver depends on: for each store, whether
// enough members answer for a linearizable read, whether this one has its vote, and
// whether the watch cache keeps up. Who leads does not matter.
func startChecks(g *boot.Group, cfg *config, lasting, transient pipeline.Place) []rest.Check {
	if cfg.memory {
		return place(g, "store", lasting)
	}
	checks := place(g, "etcd", lasting)
	if transient.Store != lasting.Store {
		checks = append(checks, place(g, "raft", transient)...)
	}
	return checks
}

// place makes the checks of one store.
func place(g *boot.Group, name string, p pipeline.Place) []rest.Check {
	cache := ops.NewProbe(func(ctx context.Context) error {
		// What the store has by now, or where it does not answer, what was seen of it.
		rev, err := p.Store.Revision(ctx)
		if err != nil {
			rev = p.Cache.Revision()
		}
		return p.Cache.WaitFor(ctx, rev)
	})
	g.Go("readiness of the watch cache of "+name, cache.Run)
	checks := []rest.Check{{Name: name + "-watch-cache", Run: cache.Check}}
	if looked, ok := store.As[*reach.Store](p.Store); ok {
		checks = slices.Insert(checks, 0, rest.Check{Name: name, Run: looked.Check})
	}
	if member, ok := store.As[interface{ Voting(context.Context) error }](p.Store); ok {
		checks = append(checks, rest.Check{Name: name + "-vote", Run: member.Voting})
	}
	return checks
}

// healthEvery is how often the gRPC health service is brought up to date.
const healthEvery = 250 * time.Millisecond

// tellHealth keeps the gRPC health service true, for the whole and for each service
// by its name, until ctx ends. What needs no store is well as long as the process
// is not stopping.
func tellHealth(ctx, stopping context.Context, server *rpc.Server, ready ops.Check) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		whole := healthv1.HealthCheckResponse_SERVING
		if ready(ctx) != nil {
			whole = healthv1.HealthCheckResponse_NOT_SERVING
		}
		server.Health.SetServingStatus("", whole)
		for name := range server.GetServiceInfo() {
			state := healthv1.HealthCheckResponse_SERVING
			if strings.HasPrefix(name, "keelson.") && !storeless[name] {
				state = whole
			}
			server.Health.SetServingStatus(name, state)
		}
		select {
		case <-stopping.Done():
			server.Health.Shutdown()
			return nil
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// storeless are our own services that answer from this process alone.
var storeless = map[string]bool{"keelson.trace.v1.TraceService": true, "keelson.node.v1.TunnelService": true}
