package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// healthServer serves load balancers' health checks on Services' healthCheckNodePorts: it
// reports whether this node has an endpoint of the Service.
type healthServer struct {
	log    *slog.Logger
	listen func(port uint16) (net.Listener, error)
	wg     sync.WaitGroup
	open   map[uint16]*healthPort
}

type healthPort struct {
	server *http.Server
	now    atomic.Pointer[localHealth]
}

func newHealthServer(log *slog.Logger) *healthServer {
	return &healthServer{
		log: log, open: map[uint16]*healthPort{},
		listen: func(port uint16) (net.Listener, error) {
			return new(net.ListenConfig).Listen(context.Background(), "tcp4", ":"+strconv.Itoa(int(port)))
		},
	}
}

// set opens, updates and closes ports as needed. A port that cannot be opened is tried
// again at the next change.
func (h *healthServer) set(ctx context.Context, want []localHealth) {
	wanted := map[uint16]bool{}
	for _, w := range want {
		wanted[w.port] = true
		p := h.open[w.port]
		if p == nil {
			l, err := h.listen(w.port)
			if err != nil {
				h.log.WarnContext(ctx, "health check port was not opened", "service", w.namespace+"/"+w.name, "error", err)
				continue
			}
			p = &healthPort{}
			p.server = &http.Server{Handler: p, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 4 << 10}
			p.now.Store(&w)
			h.open[w.port] = p
			h.wg.Go(func() {
				if err := p.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
					h.log.WarnContext(ctx, "health check port failed", "service", w.namespace+"/"+w.name, "error", err)
				}
			})
			continue
		}
		p.now.Store(&w)
	}
	for port, p := range h.open {
		if !wanted[port] {
			p.server.Close()
			delete(h.open, port)
		}
	}
}

func (h *healthServer) close() {
	h.set(context.Background(), nil)
	h.wg.Wait()
}

// ServeHTTP responds as kube-proxy does: 200 if there is a local endpoint, otherwise 503,
// with the number of local endpoints as a weight.
func (p *healthPort) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	now := p.now.Load()
	type service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(now.localEndpoints))
	if now.localEndpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(struct {
		Service             service `json:"service"`
		LocalEndpoints      int     `json:"localEndpoints"`
		ServiceProxyHealthy bool    `json:"serviceProxyHealthy"`
	}{service{now.namespace, now.name}, now.localEndpoints, true})
}
