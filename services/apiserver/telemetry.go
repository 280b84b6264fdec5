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

// spans takes the cluster's spans: recent ones are kept in memory, and all are forwarded to
// the collector of --otlp-endpoint, if it is set.
type spans struct {
	store   *tracestore.Store
	forward *tracestore.Forward
}

// startTelemetry starts recording this process's own spans.
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

// serve registers the services that receive spans and look traces up.
func (s *spans) serve(server grpc.ServiceRegistrar, api pipeline.API, rights *authz.Authorizers, members membership) {
	service := tracestore.NewService(s.store, tracestore.Objects{API: api}, rights, s.forward)
	service.SetPeers(members.peers)
	service.Register(server)
}
