// Package stream serves the subresources that are streams: logs, exec, attach and port-forward of
// pods, over WebSocket and SPDY as kubectl uses them, and the HTTP proxy to pods, services and
// nodes, all through the tunnel to the node.
//
// It must never open a session before the pipeline has authorized the request, and no stream may
// outlive the client's connection, the node's connection, or the server.
package stream

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/front/podsession"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/tunnel"
)

// Config configures a Server.
type Config struct {
	API    pipeline.API
	Tunnel *tunnel.Server
	Log    *slog.Logger
}

// Server serves the streams.
type Server struct{ cfg Config }

// New returns a Server.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Bounds of an upgraded connection, as in Kubernetes.
const (
	idleTimeout     = 4 * time.Hour
	creationTimeout = 30 * time.Second
)

// Request is a request for a stream.
type Request struct {
	Connect resource.Stream
	// Verb is the request's verb.
	Verb   string
	Target pipeline.Target
	// Rest is the path to proxy to.
	Rest string
}

// Serve serves a stream. The error is for the client, unless the connection has been upgraded.
func (s *Server) Serve(w http.ResponseWriter, r *http.Request, q Request) error {
	connect, t := q.Connect, q.Target
	verbs := verbs(r, q.Verb, connect)
	right, err := s.authorize(r.Context(), q, verbs)
	if err != nil {
		return err
	}
	held, release := s.cfg.API.Hold(r.Context(), right, verbs...)
	defer release()
	r = r.WithContext(held)
	if s.cfg.Tunnel == nil {
		return podsession.ErrNoTunnel()
	}
	switch {
	case connect == resource.Proxy && t.Resource.Resource == "nodes":
		return s.nodeProxy(w, r, t, q.Rest, right.Subresource == t.Subresource)
	case connect == resource.Proxy:
		return s.proxy(w, r, t, q.Rest)
	}
	pod, err := podsession.Pod(r.Context(), s.cfg.API, t)
	if err != nil {
		return err
	}
	if connect == resource.Log {
		return s.log(w, r, pod)
	}
	if !httpstream.IsUpgradeRequest(r) {
		return apierrors.NewBadRequest("Upgrade request required")
	}
	if err := podsession.Assigned(pod); err != nil {
		return err
	}
	// Watch the client's connection: when it breaks, the session ends.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	w = &watched{ResponseWriter: w, broken: cancel}
	r = r.WithContext(klog.NewContext(ctx, logr.FromSlogHandler(quiet{s.cfg.Log.Handler()})))
	switch connect {
	case resource.Exec:
		return s.exec(w, r, pod)
	case resource.Attach:
		return s.attach(w, r, pod)
	case resource.PortForward:
		return s.portForward(w, r, pod)
	}
	return apierrors.NewInternalError(fmt.Errorf("%s is no stream", connect))
}

// authorize checks the user's right to a stream, and returns the target that it is a right to:
// with a proxy to a node, it may be the subresource that stands for the path.
func (s *Server) authorize(ctx context.Context, q Request, verbs []string) (pipeline.Target, error) {
	for _, verb := range verbs {
		err := s.cfg.API.Authorize(ctx, verb, q.Target)
		if err == nil {
			continue
		}
		if fine := finer(q); fine.Subresource != "" && s.cfg.API.Authorize(ctx, verb, fine) == nil {
			return fine, nil
		}
		return q.Target, err
	}
	return q.Target, nil
}

// verbs returns the verbs that a stream requires: its own and, for a WebSocket request that is
// equivalent to a POST, create as well (Kubernetes since 1.35).
func verbs(r *http.Request, verb string, connect resource.Stream) []string {
	if verb == "get" && connect != resource.Log && connect != resource.Proxy && wsstream.IsWebSocketRequest(r) {
		return []string{verb, "create"}
	}
	return []string{verb}
}

// open opens a session with the pod's node.
func (s *Server) open(ctx context.Context, pod *corev1.Pod, open *nodev1.Open) (*tunnel.Session, error) {
	return podsession.Open(ctx, s.cfg.Tunnel, pod, open)
}
