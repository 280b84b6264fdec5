// Package shutdown ends the node's pods in order when the machine is being shut down or
// restarted, before systemd stops the services that they run on.
//
// The node holds a delay inhibitor of systemd-logind. States:
//
//   - no bus, or no logind: the machine's shutdown is not noticed; the bus is tried again
//     every busRetry.
//   - watching: the inhibitor is held; the machine may be told to shut down at any time.
//   - ending: logind has said so (PrepareForShutdown true). The node is not ready and admits
//     no pod. Pods end by priority: first all but the critical ones, then those, each group
//     within its part of the time. A group does not wait longer than its pods.
//   - ended: the inhibitor is released and the machine goes down. If that does not happen
//     (PrepareForShutdown false), the node takes the inhibitor again and works as before;
//     pods that were ended stay so.
//
// Failures: logind waits at most InhibitDelayMaxSec, whatever the node needs. If that is
// less than the node's periods, the node raises it by a file in logind's configuration, and
// if that does not help, gives each group proportionally less. A connection that breaks
// while pods end does not stop that; the inhibitor is lost with it.
//
// It must never end a pod for any other reason, and never delay a shutdown by more than the
// configured time.
package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

// What is said about pods and the node. The texts are the kubelet's.
const (
	endReason      = "Terminated"
	endMessage     = "Pod was terminated in response to imminent node shutdown."
	refusalReason  = "NodeShutdown"
	refusalMessage = "Pod was rejected as the node is shutting down."
	nodeEvent      = "Shutdown"
)

// Agent is the part of the agent that this package uses.
type Agent interface {
	Active() []*corev1.Pod
	Evict(uid types.UID, e pod.Ending) (<-chan struct{}, error)
}

// Config configures a Watcher.
type Config struct {
	Node  string
	Agent Agent
	// Grace is the time that pods have to end in all; 0 turns the package off. Critical is
	// the last part of it, which only critical pods have.
	Grace, Critical time.Duration
	// Bus is the address of the system's message bus; "" is the usual one.
	Bus string
	// LogindConf is the directory for an addition to logind's configuration; "" is the
	// usual one.
	LogindConf string
	Events     *event.Recorder
	// Changed is called when Active has changed. It must not block.
	Changed func()
}

const (
	defaultBus        = "unix:path=/run/dbus/system_bus_socket"
	defaultLogindConf = "/etc/systemd/logind.conf.d"
	confName          = "99-keelson-node.conf"

	busRetry = 30 * time.Second
	// callTimeout bounds a call over the bus.
	callTimeout = 10 * time.Second
	// reloads is how often logind's limit is read again after its configuration has
	// changed, at intervals of reloadWait.
	reloads    = 20
	reloadWait = 100 * time.Millisecond

	logind  = "org.freedesktop.login1"
	manager = dbus.ObjectPath("/org/freedesktop/login1")
	prepare = logind + ".Manager.PrepareForShutdown"
)

// Check returns an error if the periods cannot be kept.
func (c Config) Check() error {
	switch {
	case c.Grace < 0 || c.Critical < 0:
		return errors.New("must not be negative")
	case c.Critical > c.Grace:
		return fmt.Errorf("the part of critical pods, %s, is longer than the whole, %s", c.Critical, c.Grace)
	}
	return nil
}

// Watcher watches for the machine's shutdown.
type Watcher struct {
	cfg Config

	mu     sync.Mutex
	active bool
}

// New returns a Watcher. It does nothing until Run is called.
func New(cfg Config) *Watcher {
	if cfg.Bus == "" {
		cfg.Bus = defaultBus
	}
	if cfg.LogindConf == "" {
		cfg.LogindConf = defaultLogindConf
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Watcher{cfg: cfg}
}

// Active reports whether the machine is being shut down.
func (w *Watcher) Active() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.active
}

func (w *Watcher) set(active bool) {
	w.mu.Lock()
	changed := w.active != active
	w.active = active
	w.mu.Unlock()
	if changed {
		w.cfg.Changed()
	}
}

// Admit refuses all pods while the machine is being shut down.
func (w *Watcher) Admit(*corev1.Pod) *pod.Refusal {
	if w.Active() {
		return &pod.Refusal{Reason: refusalReason, Message: refusalMessage}
	}
	return nil
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	if w.cfg.Grace == 0 {
		return nil
	}
	said := ""
	for {
		err := w.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if text := fmt.Sprint(err); text != said {
			slog.WarnContext(ctx, "cannot watch for shutdowns of the machine, will retry", "error", err)
			said = text
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(busRetry):
		}
	}
}

// watch holds an inhibitor and acts on logind's signals until the connection breaks.
func (w *Watcher) watch(ctx context.Context) error {
	conn, err := dbus.Connect(w.cfg.Bus, dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("message bus: %w", err)
	}
	defer conn.Close()
	b := &bus{conn: conn}
	limit, err := w.raiseLimit(ctx, b)
	if err != nil {
		return err
	}
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(manager), dbus.WithMatchInterface(logind+".Manager"), dbus.WithMatchMember("PrepareForShutdown")); err != nil {
		return fmt.Errorf("listen to logind: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	lock, err := b.inhibit(ctx)
	if err != nil {
		return err
	}
	defer func() { lock.release() }()
	slog.InfoContext(ctx, "shutdown of the machine is watched", "grace_period", w.cfg.Grace.String(), "critical", w.cfg.Critical.String(), "limit", limit.String())
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, open := <-signals:
			switch {
			case !open:
				return errors.New("the connection to the message bus has ended")
			case s.Name != prepare || len(s.Body) != 1:
				continue
			}
			if down, _ := s.Body[0].(bool); down {
				w.end(ctx, limit)
				lock.release()
				continue
			}
			if !w.Active() {
				continue
			}
			slog.InfoContext(ctx, "shutdown of the machine was cancelled")
			w.set(false)
			lock.release()
			if lock, err = b.inhibit(ctx); err != nil {
				return err
			}
		}
	}
}

// raiseLimit returns how long logind waits for inhibitors, after it has tried to make that
// as long as the pods' grace period.
func (w *Watcher) raiseLimit(ctx context.Context, b *bus) (time.Duration, error) {
	limit, err := b.limit()
	if err != nil || limit >= w.cfg.Grace {
		return limit, err
	}
	text := fmt.Sprintf("# Written by keelson's node: its pods need this long to end before a shutdown.\n[Login]\nInhibitDelayMaxSec=%d\n", int64((w.cfg.Grace+time.Second-1)/time.Second))
	if err := os.MkdirAll(w.cfg.LogindConf, 0o755); err == nil {
		err = os.WriteFile(filepath.Join(w.cfg.LogindConf, confName), []byte(text), 0o644)
		if err == nil {
			err = b.reload(ctx)
		}
		if err != nil {
			slog.WarnContext(ctx, "logind's limit was not raised", "error", err)
		}
	}
	for range reloads {
		if limit, err = b.limit(); err != nil || limit >= w.cfg.Grace {
			return limit, err
		}
		select {
		case <-ctx.Done():
			return limit, ctx.Err()
		case <-time.After(reloadWait):
		}
	}
	slog.WarnContext(ctx, "pods have less time to end before a shutdown than configured: raise InhibitDelayMaxSec in logind.conf",
		"grace_period", w.cfg.Grace.String(), "limit", limit.String())
	return limit, nil
}

// Group is the pods that end at the same time.
type Group struct {
	Pods []*corev1.Pod
	// Period is how long they have.
	Period time.Duration
}

// Plan returns the groups of pods in the order in which they end. limit is how long the
// machine waits at most.
func Plan(pods []*corev1.Pod, grace, critical, limit time.Duration) []Group {
	if limit < grace {
		critical = time.Duration(float64(critical) * float64(limit) / float64(grace))
		grace = limit
	}
	groups := []Group{{Period: grace - critical}, {Period: critical}}
	for _, p := range pods {
		i := 0
		if pod.IsCritical(p) {
			i = 1
		}
		groups[i].Pods = append(groups[i].Pods, p)
	}
	return slices.DeleteFunc(groups, func(g Group) bool { return len(g.Pods) == 0 })
}

// end ends all pods of the node.
func (w *Watcher) end(ctx context.Context, limit time.Duration) {
	slog.InfoContext(ctx, "the machine is being shut down")
	w.set(true)
	w.cfg.Events.Node(w.cfg.Node, corev1.EventTypeNormal, nodeEvent, "Shutdown manager detected shutdown event")
	began := time.Now()
	for _, g := range Plan(w.cfg.Agent.Active(), w.cfg.Grace, w.cfg.Critical, limit) {
		w.endGroup(ctx, g)
	}
	slog.InfoContext(ctx, "pods have ended before the shutdown", "took", time.Since(began).String())
}

func (w *Watcher) endGroup(ctx context.Context, g Group) {
	timer := time.NewTimer(g.Period)
	defer timer.Stop()
	e := pod.Ending{Reason: endReason, Message: endMessage, Conditions: []corev1.PodCondition{pod.Disrupted(endMessage)}, Grace: &g.Period}
	var over []<-chan struct{}
	for _, p := range g.Pods {
		done, err := w.cfg.Agent.Evict(p.UID, e)
		if err != nil {
			continue // it has gone meanwhile
		}
		over = append(over, done)
	}
	for _, done := range over {
		select {
		case <-done:
		case <-timer.C:
			slog.WarnContext(ctx, "pods did not end in time before the shutdown", "period", g.Period.String())
			return
		case <-ctx.Done():
			return
		}
	}
}
