package registration

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/plaintext"
)

const (
	// healthPeriod is how often the runtime is asked; more often while it, or its
	// network, is not there, for somebody may be waiting.
	healthPeriod  = 2 * time.Second
	hurriedPeriod = 200 * time.Millisecond
	// hangPatience is how long a runtime that answers nothing is taken to be
	// busy; one that refuses connections is down after deadPatience.
	hangPatience = 30 * time.Second
	deadPatience = 2 * time.Second
	statusWait   = 5 * time.Second
	// maxProblem bounds what is passed on of the runtime's own words.
	maxProblem = 1024
)

// Health follows whether the container runtime is there.
type Health struct {
	runtime *cri.Client
	// recovered is called when the runtime, or its network, becomes usable.
	recovered func()

	mu       sync.Mutex
	lastOK   time.Time
	problem  string
	network  string // why there is no network, or ""
	info     string // name://version
	handlers []*runtimev1.RuntimeHandler
}

// NewHealth makes a Health; Run follows.
func NewHealth(runtime *cri.Client, recovered func()) *Health {
	return &Health{runtime: runtime, recovered: recovered, problem: "not yet contacted", network: "not yet known"}
}

// Run asks the runtime from time to time until ctx ends.
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
		slog.Error("container runtime is down", "error", err)
	case !wasUp && up:
		slog.Info("container runtime is up", "runtime", h.Version())
	}
	if up && !wasUp || connected && !wasConnected {
		h.recovered()
	}
}

// take reads the runtime's own conditions.
func (h *Health) take(resp *runtimev1.StatusResponse, now time.Time) {
	h.lastOK = now
	h.problem, h.network = "", ""
	h.handlers = resp.RuntimeHandlers
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

func (h *Health) readVersion(ctx context.Context) {
	v, err := h.runtime.Version(ctx)
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.info = v.RuntimeName + "://" + v.RuntimeVersion
}

// Up says that the runtime answers.
func (h *Health) Up() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.problem == ""
}

// NetworkReady says that the runtime can make pod networks.
func (h *Health) NetworkReady() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.problem == "" && h.network == ""
}

// Version is the runtime's name and version, "containerd://1.6.20".
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
