// Package stream serves the subresources that are streams: logs, exec, attach and
// port-forward of pods, through the tunnel to the pod's node.
//
// It must never open a session before the pipeline has authorized the request.
package stream

import (
	"log/slog"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/tunnel"
)

// Config is what the streams need.
type Config struct {
	API    pipeline.API
	Tunnel *tunnel.Server
	Log    *slog.Logger
}

// Server serves the streams.
type Server struct{ cfg Config }

// New makes a Server.
func New(cfg Config) *Server { return &Server{cfg: cfg} }
