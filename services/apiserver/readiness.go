package main

import (
	"context"
	"errors"
	"maps"
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

// health is what this apiserver reports about itself.
type health struct {
	// status serves the operations listener.
	status *ops.Server
	// checks are those of the stores.
	checks []rest.Check
	// ready is closed when the fronts begin to serve.
	ready chan struct{}
	// stopping ends with the signal to stop, or by stop if there was none.
	stopping context.Context
	stop     context.CancelFunc
}

// startHealth starts the checks. The caller serves status and closes ready.
func startHealth(ctx context.Context, g *boot.Group, cfg *config, st *state) *health {
	h := &health{status: ops.New(), ready: make(chan struct{})}
	h.status.Ready("start", ops.ReadyWhen(h.ready))
	g.Alive(h.status.CheckHealth)
	for name, place := range map[string]pipeline.Place{"lasting": st.lasting, "transient": st.transient} {
		registerLeading(h.status.Registry(), name, place.Store)
		registerSpace(h.status, name, place.Store)
	}
	h.checks = startChecks(g, h.status, cfg, st.lasting, st.transient)
	for _, c := range h.checks {
		h.status.Ready(c.Name, c.Run)
	}
	h.stopping, h.stop = context.WithCancel(ctx)
	h.status.Ready("shutdown", notStopping(h.stopping))
	return h
}

// notStopping fails once the apiserver is stopping, so that it is sent nothing new.
func notStopping(stopping context.Context) ops.Check {
	return func(context.Context) error {
		if stopping.Err() != nil {
			return errors.New("it is stopping")
		}
		return nil
	}
}

// startChecks returns the checks of what this apiserver depends on: for each store, that
// enough members answer for a linearizable read, that this one has a vote, and that the
// watch cache keeps up. Which member leads does not matter.
func startChecks(g *boot.Group, status *ops.Server, cfg *config, lasting, transient pipeline.Place) []rest.Check {
	if cfg.memory {
		return storeChecks(g, status, "store", lasting)
	}
	checks := storeChecks(g, status, "etcd", lasting)
	if transient.Store != lasting.Store {
		checks = append(checks, storeChecks(g, status, "raft", transient)...)
	}
	return checks
}

// storeChecks returns the checks of one store.
func storeChecks(g *boot.Group, status *ops.Server, name string, p pipeline.Place) []rest.Check {
	looked, probed := store.As[*reach.Store](p.Store)
	cache := ops.NewProbe(func(ctx context.Context) error {
		if probed && looked.Probed() > 0 {
			return p.Cache.WaitFor(ctx, looked.Probed())
		}
		// The store's present revision, or, if it does not answer, the cache's own: while
		// the store cannot be reached, its own check fails, not this one.
		rev, err := p.Store.Revision(ctx)
		if err != nil {
			rev = p.Cache.Revision()
		}
		return p.Cache.WaitFor(ctx, rev)
	})
	g.Go("readiness of the watch cache of "+name, cache.Run)
	// A store that does not answer is no reason to restart; one that ignores that the wait has
	// ended is.
	status.Health(name+"-watch-cache-answers", cache.Alive)
	checks := []rest.Check{{Name: name + "-watch-cache", Run: cache.Check}}
	if probed {
		checks = slices.Insert(checks, 0, rest.Check{Name: name, Run: looked.Check})
	}
	if member, ok := store.As[interface{ Voting(context.Context) error }](p.Store); ok {
		checks = append(checks, rest.Check{Name: name + "-vote", Run: member.Voting})
	}
	return checks
}

// healthEvery is the interval at which the gRPC health service is updated.
const healthEvery = 250 * time.Millisecond

// updateHealth updates the gRPC health service, for the server and for each service by name,
// until ctx or stopping ends. Services that need no store are healthy until then.
func updateHealth(ctx, stopping context.Context, server *rpc.Server, ready ops.Check) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	services := slices.Collect(maps.Keys(server.GetServiceInfo()))
	last := healthv1.HealthCheckResponse_UNKNOWN
	for {
		overall := healthv1.HealthCheckResponse_SERVING
		if ready(ctx) != nil {
			overall = healthv1.HealthCheckResponse_NOT_SERVING
		}
		if overall != last {
			last = overall
			server.Health.SetServingStatus("", overall)
			for _, name := range services {
				state := healthv1.HealthCheckResponse_SERVING
				if strings.HasPrefix(name, "keelson.") && !storeless[name] {
					state = overall
				}
				server.Health.SetServingStatus(name, state)
			}
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

// storeless lists those of our own services that need no store.
var storeless = map[string]bool{"keelson.trace.v1.TraceService": true, "keelson.node.v1.TunnelService": true}
