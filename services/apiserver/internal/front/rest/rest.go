// Package rest is the Kubernetes HTTP API: the door for kubectl, helm and
// client-go. It turns requests into calls of the pipeline and answers into bytes,
// and does nothing else.
//
// It must never decide: what exists, who may do what, what is valid and what is
// stored is the pipeline's. It must never touch the store or change an object that
// it was given.
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

// Authenticator tells who a request comes from.
type Authenticator interface {
	// Authenticate names the caller from the certificates of its connection, which
	// TLS has verified, or its bearer token; both may be empty, and the anonymous
	// user is an answer too. An error becomes 401.
	Authenticate(ctx context.Context, certs []*x509.Certificate, token string) (request.User, error)
}

// Check is one health check.
type Check struct {
	Name string
	// Run says what is wrong; it is called at each request.
	Run func(ctx context.Context) error
	// Live makes it part of /livez as well; every check is part of /readyz and
	// /healthz.
	Live bool
}

// Config is what the front needs.
type Config struct {
	API   pipeline.API
	Authn Authenticator
	// Tunnel leads to the nodes; without one, logs, exec, attach and port-forward
	// answer 503.
	Tunnel *tunnel.Server
	// Version is what /version says; by default DefaultVersion.
	Version version.Info
	Checks  []Check
	// Metrics, OpenIDConfiguration and JWKS serve /metrics,
	// /.well-known/openid-configuration and /openid/v1/jwks; each may be nil.
	Metrics, OpenIDConfiguration, JWKS http.Handler
	// Registerer is where the front's own metrics go; nil is nowhere.
	Registerer prometheus.Registerer
	// Log is where requests are logged, at debug level; nil is slog's default.
	Log *slog.Logger
	// RequestTimeout ends requests that are neither watches nor streams; 0 is a
	// minute, as in Kubernetes.
	RequestTimeout time.Duration
	// BodyTimeout is how long a client may take to send a body; 0 is 30 seconds.
	BodyTimeout time.Duration
	// ServerAddresses are the addresses that /api names ("10.89.1.1:6443").
	ServerAddresses []string
}

// maxBody is the largest body of a request, as in Kubernetes.
const maxBody = 3 << 20

// Handler is the front.
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

// New makes the front.
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

// fixedPaths are the paths outside /api/ and /apis/ that are exact.
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

// fixed finds the handler of a path that is not a resource.
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
