package registration

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/plaintext"
)

const (
	// healthPeriod is the interval at which the runtime is asked. hurriedPeriod applies
	// while the runtime or its network is not ready, because pods may be waiting.
	healthPeriod  = 2 * time.Second
	hurriedPeriod = 200 * time.Millisecond
	// hangPatience is how long a runtime that does not answer is assumed to be busy. A
	// runtime that refuses connections is considered down after deadPatience.
	hangPatience = 30 * time.Second
	deadPatience = 2 * time.Second
	statusWait   = 5 * time.Second
	// maxProblem bounds the runtime's messages in conditions, in bytes.
	maxProblem = 1024
)

// Health tracks whether the container runtime answers and has a network.
type Health struct {
	runtime *cri.Client
	// recovered is called when the runtime or its network becomes usable.
	recovered func()

	mu       sync.Mutex
	lastOK   time.Time
	problem  string
	network  string // why the network is not ready, or ""
	info     string // name://version
	handlers []corev1.NodeRuntimeHandler
	features *corev1.NodeFeatures
}

// NewHealth returns a Health. It asks nothing until Run is called.
func NewHealth(runtime *cri.Client, recovered func()) *Health {
	return &Health{runtime: runtime, recovered: recovered, problem: "not yet contacted", network: "not yet known"}
}

// Run asks the runtime periodically until ctx ends.
func (h *Health) Run(ctx context.Context) error {
	for {
		h.ask(ctx)
		period := healthPeriod
		if !h.NetworkReady() {
			period = hurriedPeriod
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(period):
		}
	}
}

func (h *Health) ask(ctx context.Context) {
	resp, err := h.runtime.Status(ctx, statusWait)
	if ctx.Err() != nil {
		return
	}
	wasUp, wasConnected := h.Up(), h.NetworkReady()
	if err == nil && h.Version() == "" || err == nil && !wasUp {
		h.readVersion(ctx)
	}
	h.mu.Lock()
	now := time.Now()
	if err == nil {
		h.take(resp, now)
	} else {
		patience := hangPatience
		if status.Code(err) == codes.Unavailable {
			patience = deadPatience
		}
		if now.Sub(h.lastOK) > patience {
			h.problem = cri.Message(err)
		}
	}
	h.mu.Unlock()
	up, connected := h.Up(), h.NetworkReady()
	switch {
	case wasUp && !up:
		slog.ErrorContext(ctx, "container runtime is down", "error", err)
	case !wasUp && up:
		slog.InfoContext(ctx, "container runtime is up", "runtime", h.Version())
	}
	if up && !wasUp || connected && !wasConnected {
		h.recovered()
	}
}

// take records the runtime's conditions.
func (h *Health) take(resp *runtimev1.StatusResponse, now time.Time) {
	h.lastOK = now
	h.problem, h.network = "", ""
	h.handlers = handlers(resp.GetRuntimeHandlers())
	h.features = nil
	if f := resp.GetFeatures(); f != nil {
		h.features = &corev1.NodeFeatures{SupplementalGroupsPolicy: &f.SupplementalGroupsPolicy}
	}
	for _, c := range resp.GetStatus().GetConditions() {
		if c.Status {
			continue
		}
		text := plaintext.Clean(c.Type+"=false reason:"+c.Reason+" message:"+c.Message, maxProblem)
		switch c.Type {
		case "RuntimeReady":
			h.problem = text
		case "NetworkReady":
			h.network = text
		}
	}
}

// handlers converts the runtime's handlers, sorted by name.
func handlers(list []*runtimev1.RuntimeHandler) []corev1.NodeRuntimeHandler {
	var out []corev1.NodeRuntimeHandler
	for _, r := range list {
		h := corev1.NodeRuntimeHandler{Name: r.GetName()}
		if f := r.GetFeatures(); f != nil {
			h.Features = &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &f.RecursiveReadOnlyMounts, UserNamespaces: &f.UserNamespaces}
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b corev1.NodeRuntimeHandler) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Features returns what the runtime's handler with this name supports. A runtime that does
// not report its handlers (containerd before 2.0) supports none of the features.
func (h *Health) Features(handler string) corev1.NodeRuntimeHandlerFeatures {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.handlers {
		if r.Name == handler && r.Features != nil {
			return *r.Features
		}
	}
	return corev1.NodeRuntimeHandlerFeatures{}
}

// runtimeFeatures returns the runtime's handlers and features. The results must not be
// changed.
func (h *Health) runtimeFeatures() ([]corev1.NodeRuntimeHandler, *corev1.NodeFeatures) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.handlers, h.features
}

func (h *Health) readVersion(ctx context.Context) {
	v, err := h.runtime.Version(ctx)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.info = v.RuntimeName + "://" + v.RuntimeVersion
}

// Up reports whether the runtime answers and is ready.
func (h *Health) Up() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.problem == ""
}

// NetworkReady reports whether the runtime can set up pod networks.
func (h *Health) NetworkReady() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.problem == "" && h.network == ""
}

// Version returns the runtime's name and version, for example "containerd://1.6.20".
func (h *Health) Version() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.info
}

func (h *Health) state() (problem, network string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.problem, h.network
}
