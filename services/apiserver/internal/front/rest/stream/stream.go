// Package stream serves the subresources that are streams: logs, exec, attach and port-forward of
// pods, over WebSocket and SPDY as kubectl uses them, and the HTTP proxy to pods, services and
// nodes, all through the tunnel to the node.
//
// It must never open a session before the pipeline has authorized the request, and no stream may
// outlive the client's connection, the node's connection, or the server.
package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
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
		return errNoTunnel()
	}
	switch {
	case connect == resource.Proxy && t.Resource.Resource == "nodes":
		return s.nodeProxy(w, r, t, q.Rest, right.Subresource == t.Subresource)
	case connect == resource.Proxy:
		return s.proxy(w, r, t, q.Rest)
	}
	pod, err := s.pod(r.Context(), t)
	if err != nil {
		return err
	}
	if connect == resource.Log {
		return s.log(w, r, pod)
	}
	if !httpstream.IsUpgradeRequest(r) {
		return apierrors.NewBadRequest("Upgrade request required")
	}
	if pod.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
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

func errNoTunnel() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotImplemented, Reason: "NotOffered", Message: "this apiserver has no connections to nodes",
	}}
}

// self is the apiserver's own user, which reads the pod of an authorized stream: the user of the
// stream needs no right to read pods.
var self = request.User{Name: "system:apiserver", Groups: []string{"system:masters", "system:authenticated"}}

func (s *Server) pod(ctx context.Context, t pipeline.Target) (*corev1.Pod, error) {
	t.Subresource = ""
	out, err := s.cfg.API.Get(request.WithUser(ctx, self), t, pipeline.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod, ok := out.Item.Object.(*corev1.Pod)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("%s has no streams", t.Resource.Resource))
	}
	return pod, nil
}

// container validates the name of a container, or chooses the only one, with Kubernetes'
// messages.
func container(pod *corev1.Pod, name string) (string, error) {
	names := containerNames(pod.Spec.Containers)
	initial := containerNames(pod.Spec.InitContainers)
	if name == "" {
		switch {
		case len(names) == 1:
			return names[0], nil
		case len(names) == 0:
			return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", pod.Name))
		}
		text := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(names, " "))
		if len(initial) > 0 {
			text += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(initial, " "))
		}
		return "", apierrors.NewBadRequest(text)
	}
	for _, known := range append(append(names, initial...), ephemeralNames(pod)...) {
		if known == name {
			return name, nil
		}
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
}

func containerNames(containers []corev1.Container) []string {
	var names []string
	for i := range containers {
		names = append(names, containers[i].Name)
	}
	return names
}

func ephemeralNames(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.EphemeralContainers {
		names = append(names, pod.Spec.EphemeralContainers[i].Name)
	}
	return names
}

func ref(pod *corev1.Pod, container string) *nodev1.PodRef {
	return &nodev1.PodRef{Namespace: pod.Namespace, Name: pod.Name, Uid: string(pod.UID), Container: container}
}

// open opens a session and converts the tunnel's errors to Kubernetes'.
func (s *Server) open(ctx context.Context, pod *corev1.Pod, open *nodev1.Open) (*tunnel.Session, error) {
	session, err := s.cfg.Tunnel.Open(ctx, pod.Spec.NodeName, open)
	if err == nil {
		return session, nil
	}
	var refused apierrors.APIStatus
	switch {
	case errors.As(err, &refused):
		return nil, err
	case errors.Is(err, tunnel.ErrTooMany):
		return nil, apierrors.NewTooManyRequests(err.Error(), 1)
	case errors.Is(err, tunnel.ErrTimeout):
		return nil, apierrors.NewTimeoutError(err.Error(), 1)
	case errors.Is(err, tunnel.ErrNotConnected), errors.Is(err, tunnel.ErrGone):
		return nil, apierrors.NewServiceUnavailable(err.Error())
	}
	return nil, err
}
