package main

import (
	"context"

	"google.golang.org/grpc"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/tracestore"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/telemetry"
)

// spans is where the cluster's spans go: the recent ones into memory, and all on
// to a collector if there is one.
type spans struct {
	store   *tracestore.Store
	forward *tracestore.Forward
}

// startTelemetry records this process' own spans.
func startTelemetry(ctx context.Context, g *boot.Group, cfg *config) (*spans, error) {
	forward, err := tracestore.NewForward(cfg.service.OTLPEndpoint)
	if err != nil {
		return nil, boot.Invalid("%w", err)
	}
	s := &spans{store: tracestore.New(tracestore.Config{}), forward: forward}
	if forward != nil {
		g.Go("span forwarding", forward.Run)
	}
	t, err := telemetry.Start(ctx, telemetry.Config{Service: "apiserver", Instance: cfg.name, Exporter: tracestore.Exporter(s.store, forward)})
	if err != nil {
		return nil, err
	}
	g.OnStop("telemetry", t.Shutdown)
	return s, nil
}

// serve adds the doors by which spans come in and traces are looked up.
func (s *spans) serve(server grpc.ServiceRegistrar, api pipeline.API, rights *authz.Authorizers) {
	tracestore.NewService(s.store, tracestore.Objects{API: api}, rights, s.forward).Register(server)
}
