package main

import (
	"context"

	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/telemetry"
)

// spans is where the cluster's spans go.
type spans struct{}

// startTelemetry sets up this process' own spans.
func startTelemetry(ctx context.Context, g *boot.Group, cfg *config) (*spans, error) {
	t, err := telemetry.Start(ctx, telemetry.Config{Service: "apiserver", Instance: cfg.name})
	if err != nil {
		return nil, err
	}
	g.OnStop("telemetry", t.Shutdown)
	return &spans{}, nil
}
