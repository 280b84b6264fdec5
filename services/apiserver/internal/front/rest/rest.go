// Package rest is the Kubernetes HTTP API, for kubectl, helm and client-go. It converts requests
// to calls of the pipeline and results to bytes, and does nothing else.
//
// It must never decide: what exists, who may do what, what is valid and what is stored is up to
// the pipeline. It must never access the store, or modify an object that it was given.
package rest

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/version"

	"keelson.dev/services/apiserver/internal/front/rest/discovery"
	"keelson.dev/services/apiserver/internal/front/rest/openapi"
	"keelson.dev/services/apiserver/internal/front/rest/stream"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/tunnel"
)

// Authenticator authenticates requests.
type Authenticator interface {
	// Authenticate returns the user of a connection's certificates, or of a bearer token. Both
	// may be empty; the user may be the anonymous one. An error results in 401.
	Authenticate(ctx context.Context, certs []*x509.Certificate, token string) (request.User, error)
}

// Check is a health check.
type Check struct {
	Name string
	// Run returns what is wrong, or nil. It is called for every request.
	Run func(ctx context.Context) error
	// Live adds the check to /livez. Every check is part of /readyz and /healthz.
	Live bool
}

// Config configures a Handler.
type Config struct {
	API   pipeline.API
	Authn Authenticator
	// Tunnel connects to the nodes. Without it, logs, exec, attach and port-forward return 503.
	Tunnel *tunnel.Server
	// Version is returned by /version. The default is DefaultVersion().
	Version version.Info
	Checks  []Check
	// Metrics, OpenIDConfiguration and JWKS serve /metrics, /.well-known/openid-configuration and
	// /openid/v1/jwks. Each may be nil.
	Metrics, OpenIDConfiguration, JWKS http.Handler
	// Web serves browsers by gRPC-Web. It may be nil.
	Web Web
	// Registerer is where the front registers its metrics. It may be nil.
	Registerer prometheus.Registerer
	// Log receives requests at debug level. nil means slog.Default().
	Log *slog.Logger
	// RequestTimeout bounds requests other than watches and streams. 0 means one minute, as in
	// Kubernetes.
	RequestTimeout time.Duration
	// BodyTimeout bounds how long a client may take to send a body. 0 means 30 seconds.
	BodyTimeout time.Duration
	// ServerAddresses are the addresses that /api lists ("10.89.1.1:6443").
	ServerAddresses []string
}

// Web is a handler of requests that are not for Kubernetes' API, with authentication of its own.
type Web interface {
	// Handles reports whether a request is one of these. It must not read the body.
	Handles(r *http.Request) bool
	http.Handler
}

// maxBody is the maximum size of a request body in bytes, as in Kubernetes.
const maxBody = 3 << 20

// Handler is the REST front.
type Handler struct {
	cfg       Config
	api       pipeline.API
	log       *slog.Logger
	discovery *discovery.Documents
	openapi   *openapi.Documents
	streams   *stream.Server
	metrics   *metrics
	bounds    *bounds
	refusals  refusals
	paths     map[string]http.Handler
}

// New returns the front.
func New(cfg Config) *Handler {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.BodyTimeout == 0 {
		cfg.BodyTimeout = 30 * time.Second
	}
	if cfg.Version.GitVersion == "" {
		cfg.Version = DefaultVersion()
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = time.Minute
	}
	h := &Handler{
		cfg:       cfg,
		api:       cfg.API,
		log:       cfg.Log,
		discovery: discovery.New(cfg.API.Table(), cfg.ServerAddresses),
		openapi:   openapi.New(),
		metrics:   newMetrics(cfg.Registerer),
		bounds:    newBounds(),
	}
	h.streams = stream.New(stream.Config{API: cfg.API, Tunnel: cfg.Tunnel, Log: cfg.Log})
	h.paths = h.fixedPaths()
	return h
}

// fixedPaths returns the handlers of the exact paths outside /api/ and /apis/.
func (h *Handler) fixedPaths() map[string]http.Handler {
	paths := map[string]http.Handler{
		"/version":    http.HandlerFunc(h.serveVersion),
		"/openapi/v2": http.HandlerFunc(h.openapi.ServeV2),
		"/openapi/v3": http.HandlerFunc(h.openapi.ServeV3Index),
	}
	for path, handler := range map[string]http.Handler{
		"/metrics":                          h.cfg.Metrics,
		"/.well-known/openid-configuration": h.cfg.OpenIDConfiguration,
		"/openid/v1/jwks":                   h.cfg.JWKS,
	} {
		if handler != nil {
			paths[path] = handler
		}
	}
	h.healthPaths(paths)
	h.debugPaths(paths)
	return paths
}

// fixed returns the handler of a path that is not a resource, or nil.
func (h *Handler) fixed(path string) http.Handler {
	if handler := h.paths[path]; handler != nil {
		return handler
	}
	switch {
	case path == "/", path == "/index.html":
		return http.HandlerFunc(h.serveRoot)
	case strings.HasPrefix(path, "/openapi/v3/"):
		return http.HandlerFunc(h.openapi.ServeV3)
	case path == "/debug/pprof/":
		return http.HandlerFunc(pprof.Index)
	case path == "/version/":
		return h.paths["/version"]
	}
	return nil
}
