// Package kubeletapi serves the part of the kubelet's HTTP API that only reads: /healthz,
// /pods, /runningpods, /stats/summary, /metrics, /metrics/resource, /metrics/cadvisor,
// /metrics/probes, /configz and /logs/.
//
// There is no listener: each connection comes from an apiserver through the tunnel, which
// only the node itself opens, and the apiserver has authorized the request (nodes/proxy, or
// the subresource that the kubelet's own authorization names for the path). The package must
// never change anything, serve a file that is not a log of one of this node's pods, or return
// the value of an environment variable other than as part of a pod's spec.
//
// Requests other than GET and HEAD are refused, bodies are not read, headers are bounded, and
// at most maxRequests run at a time.
package kubeletapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/node/internal/usage"
)

const (
	maxRequests   = 32
	maxHeader     = 32 << 10
	headerTimeout = 10 * time.Second
	// writeTimeout bounds a response, including the largest log file at the pace of its reader.
	writeTimeout = 10 * time.Minute
	idleTimeout  = time.Minute
)

// Meter measures; it is implemented by [usage.Meter].
type Meter interface {
	Read(context.Context, usage.Want) (*usage.Report, error)
}

// Config configures a Server. All fields are required.
type Config struct {
	// Node is the node's name.
	Node  string
	Meter Meter
	// Pods returns the node's pods. Objects are shared.
	Pods func() []*corev1.Pod
	// Healthy returns why the node is not healthy, or nil.
	Healthy func(context.Context) error
	// Metrics gathers the metrics of the process.
	Metrics prometheus.Gatherer
	// LogDir holds a directory for each pod's logs, and LogFolders returns the names of those
	// that are this node's.
	LogDir     string
	LogFolders func() []string
	// Configuration is the object that /configz shows as kubeletconfig.
	Configuration map[string]any
}

// Server serves the API on connections that Dial returns.
type Server struct {
	cfg      Config
	handler  http.Handler
	slots    chan struct{}
	accepted chan net.Conn
}

// New returns a Server. It serves nothing until Run is called.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, slots: make(chan struct{}, maxRequests), accepted: make(chan net.Conn)}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", s.healthz)
	mux.HandleFunc("/healthz/{name}", s.healthz)
	mux.HandleFunc("/pods", s.pods)
	mux.HandleFunc("/pods/", s.pods)
	mux.HandleFunc("/runningpods", s.runningPods)
	mux.HandleFunc("/runningpods/", s.runningPods)
	mux.HandleFunc("/stats/summary", s.summary)
	mux.Handle("/metrics", s.gathered(cfg.Metrics, s.volumes))
	mux.Handle("/metrics/resource", s.gathered(nil, s.resources))
	mux.Handle("/metrics/cadvisor", s.gathered(nil, s.cadvisor))
	mux.Handle("/metrics/probes", s.gathered(nil, nil))
	mux.HandleFunc("/configz", s.configz)
	mux.HandleFunc("/logs/", s.logs)
	s.handler = s.guard(mux)
	return s
}

// guard refuses requests that change something, and too many.
func (s *Server) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, fmt.Sprintf("method %s is not supported: a node's API only reads; use the subresources of pods for exec, attach, port-forward and logs", r.Method), http.StatusMethodNotAllowed)
			return
		}
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "the node serves too many requests of its API, try again later", http.StatusTooManyRequests)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Run serves connections until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	l := &listener{accepted: s.accepted, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("node API: %w", err)
	}
	return nil
}

// Dial returns a connection that Run serves.
func (s *Server) Dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case s.accepted <- far:
		return near, nil
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), near.Close(), far.Close())
	}
}

// listener accepts the connections of Dial.
type listener struct {
	accepted chan net.Conn
	once     sync.Once
	done     chan struct{}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "tunnel", Net: "unix"} }

func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := s.cfg.Healthy(r.Context()); err != nil {
		http.Error(w, fmt.Sprintf("healthz check failed: %v", err), http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, "ok")
}

// pods serves the pods that are bound to the node, as a PodList.
func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.cfg.Pods() {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, &list)
}

// runningPods serves the pods that the runtime has, as a PodList with the identity of each pod and
// the names and images of its running containers, as the kubelet does.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	report, err := s.cfg.Meter.Read(r.Context(), usage.Want{MaxAge: time.Second})
	if err != nil {
		unavailable(w, err)
		return
	}
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: make([]corev1.Pod, len(report.Pods))}
	for i, p := range report.Pods {
		out := &list.Items[i]
		out.UID, out.Namespace, out.Name = p.UID, p.Namespace, p.Name
		for _, c := range p.Containers {
			out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: c.Name, Image: c.Image})
		}
	}
	writeJSON(w, &list)
}

// configz serves what the node was configured with, under the names of the kubelet's fields.
func (s *Server) configz(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{"kubeletconfig": s.cfg.Configuration})
}

func writeJSON(w http.ResponseWriter, value any) {
	b, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

// unavailable answers a request for a measurement that failed.
func unavailable(w http.ResponseWriter, err error) {
	http.Error(w, fmt.Sprintf("the node cannot be measured: %v", err), http.StatusInternalServerError)
}
