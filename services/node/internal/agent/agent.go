// Package agent runs the pods that are bound to its node: one worker a pod
// compares what should be with what the container runtime has, and does the
// difference.
//
// The agent keeps no state that it could not read again: it may be killed at any
// time, and its successor takes the running containers over as they are. It must
// never restart what runs as it should, and never decide by itself what package
// pod decides.
//
// Of what a container is given and says, only what Kubernetes shows on purpose
// leaves the node in statuses and events: its termination message (bounded,
// otherwise as it is, for programs read it), what a failing exec probe prints, and
// the name of a program that could not be started. Hooks' commands and output,
// arguments and environments do not; spans and logs have none of it.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/cni"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/image"
	"keelson.dev/services/node/internal/log"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/probe"
	"keelson.dev/services/node/internal/status"
	"keelson.dev/services/node/internal/volume"
)

// Config is what an agent needs.
type Config struct {
	Node    string
	Client  *client.Client
	Runtime *cri.Client
	// DataDir holds the pods' volumes, and the ledger of their logs.
	DataDir string
	// ContainerLogDir holds a link to each container's log.
	ContainerLogDir string
	Settings        pod.Settings
	Cgroups         *cgroup.Hierarchy
	Events          *event.Recorder
	// LogSize in bytes at which a container's log is rotated; 0 means 10 MiB.
	LogSize int64
	// HostIPs are the node's addresses.
	HostIPs func() []string
	// Self is the node's own object, or nil while it is not known; may be nil.
	Self func() *corev1.Node
	// Allocatable of the node.
	Allocatable func() corev1.ResourceList
	// Services of the cluster, and a channel that closes when they are known.
	Services       func() []*corev1.Service
	ServicesSynced <-chan struct{}
	// HostPorts is told a pod's host ports when it has its address, and none when
	// it has ended; may be nil.
	HostPorts func(key string, ports []cni.HostPort)
	// Begin is called once before any pod is started, with the sandboxes that
	// the runtime has; may be nil.
	Begin func(sandboxes map[string]bool)
	// RuntimeUp says whether the container runtime is known to answer, and
	// NetworkReady whether it can make pod networks.
	RuntimeUp, NetworkReady func() bool
}

// Agent runs pods.
type Agent struct {
	cfg     Config
	pods    *client.Cache[*corev1.Pod]
	writer  *status.Writer
	images  *image.Puller
	probes  *probe.Prober
	volumes *volume.Set
	objects *objects
	logs    log.Layout
	log     *slog.Logger
	rotate  chan struct{}

	addresses addresses
	// began says that the pods of the API have workers: what has none is nobody's.
	began atomic.Bool
	// runtimeName begins containers' ids; it is set before any worker starts.
	runtimeName string

	mu      sync.Mutex
	workers map[types.UID]*worker
	// admitted are the pods that the node has taken and that have not ended.
	admitted map[types.UID]*corev1.Pod
	base     context.Context
	wg       sync.WaitGroup
}

// parallelPulls is how many images are fetched at a time.
const parallelPulls = 3

// New makes an agent; Run runs it.
func New(cfg Config) *Agent {
	a := &Agent{cfg: cfg, workers: map[types.UID]*worker{}, admitted: map[types.UID]*corev1.Pod{}, rotate: make(chan struct{}), log: slog.With("node", cfg.Node)}
	a.pods = client.NewCache(cfg.Client, client.CacheOptions[*corev1.Pod]{
		FieldSelector: "spec.nodeName=" + cfg.Node,
		Transform: func(p *corev1.Pod) *corev1.Pod {
			p.ManagedFields = nil
			return p
		},
	})
	a.writer = status.NewWriter(api{cfg.Client}, a.pods.Get)
	a.images = image.NewPuller(cfg.Runtime, cfg.Events, parallelPulls)
	a.logs = log.Layout{Pods: cfg.Settings.LogDir, Containers: cfg.ContainerLogDir, Ledger: filepath.Join(cfg.DataDir, "log")}
	a.probes = probe.New(cfg.Runtime, cfg.Events, a.wake)
	return a
}

// Pods is the cache of this node's pods.
func (a *Agent) Pods() *client.Cache[*corev1.Pod] { return a.pods }

// api is what the status writer needs, on a client.
type api struct{ *client.Client }

// GetPod implements status.API.
func (a api) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return client.For[*corev1.Pod](a.Client).Get(ctx, namespace, name)
}

// Run runs pods until ctx ends. Containers go on running then.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.base = ctx
	a.objects = newObjects(ctx, a.cfg.Client, a.wake)
	a.volumes = volume.New(volume.Config{
		Dir: a.cfg.DataDir + "/pods", Objects: a.objects, Node: a.cfg.Node, HostIPs: a.cfg.HostIPs, Allocatable: a.cfg.Allocatable,
	})
	var loops sync.WaitGroup
	var first error
	var once sync.Once
	start := func(name string, f func(context.Context) error) {
		loops.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				once.Do(func() { first = errors.Join(errors.New(name), err) })
			}
			cancel()
		})
	}
	start("pod watch", a.pods.Run)
	start("status writer", a.writer.Run)
	start("runtime watch", a.watchRuntime)
	start("pod dispatch", a.dispatch)
	start("housekeeping", a.housekeep)
	start("volume release", a.releaseVolumes)
	loops.Wait()
	a.wg.Wait()
	a.probes.Close()
	a.objects.wait()
	return first
}

// dispatch hands pods to their workers, once all of them are known.
func (a *Agent) dispatch(ctx context.Context) error {
	select {
	case <-a.pods.Synced():
	case <-ctx.Done():
		return nil
	}
	known, err := a.survey(ctx)
	if err != nil {
		return nil // ctx has ended
	}
	a.mu.Lock()
	for _, p := range a.pods.List() {
		if p.Status.StartTime != nil && !pod.Terminal(p) {
			a.admitted[p.UID] = p
		}
	}
	a.mu.Unlock()
	a.pods.Subscribe(a.onPod)
	a.adopt(known)
	a.began.Store(true)
	<-ctx.Done()
	return nil
}

// onPod takes one event of the watch.
func (a *Agent) onPod(ev client.Event[*corev1.Pod]) {
	a.addresses.update(ev.Object, ev.Old, ev.Type == client.Deleted)
	switch ev.Type {
	case client.Added, client.Modified:
		a.tell(ev.Object.UID, func(w *worker) { w.update(ev.Object, ev.Old, ev.Traceparent) })
	case client.Deleted:
		// A pod that was deleted by force still runs for a moment. Like the kubelet,
		// the node then counts neither its ports nor its requests: the scheduler
		// gives them to the next pod at once.
		a.dismiss(ev.Object.UID)
		a.tell(ev.Object.UID, func(w *worker) { w.remove(ev.Object, ev.Traceparent) })
	}
}

// tell brings news of a pod to its worker, which is started if need be. News comes
// before a new worker's first look, which would find no pod otherwise, and cannot
// fall between the last look of an old one and its retirement.
func (a *Agent) tell(uid types.UID, news func(*worker)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.workers[uid]
	if w != nil {
		news(w)
		return
	}
	w = newWorker(a, uid)
	a.workers[uid] = w
	news(w)
	a.wg.Go(func() { w.run(a.base) })
}

// retire forgets a worker that has nothing left to do. It fails if the pod has
// been heard of since.
func (a *Agent) retire(w *worker) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.gone {
		return false
	}
	delete(a.workers, w.uid)
	return true
}

// wake makes a pod's worker look again. It does nothing for unknown pods.
func (a *Agent) wake(uid types.UID) {
	a.mu.Lock()
	w := a.workers[uid]
	a.mu.Unlock()
	if w != nil {
		w.poke()
	}
}

// WakeAll makes all workers look again, because the runtime or its network has
// become usable.
func (a *Agent) WakeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		w.poke()
	}
}

// survey finds out what the runtime has before anything is started. It waits for
// the runtime to be there.
func (a *Agent) survey(ctx context.Context) (map[string]cri.Seen, error) {
	for {
		seen, err := a.cfg.Runtime.List(ctx)
		if err == nil {
			err = a.readRuntimeName(ctx)
		}
		if err == nil {
			if a.cfg.Begin != nil {
				sandboxes := map[string]bool{}
				for id, s := range seen {
					if s.Sandbox {
						sandboxes[id] = true
					}
				}
				a.cfg.Begin(sandboxes)
			}
			return seen, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// readRuntimeName asks what the runtime calls itself.
func (a *Agent) readRuntimeName(ctx context.Context) error {
	v, err := a.cfg.Runtime.Version(ctx)
	if err != nil {
		return err
	}
	a.runtimeName = v.GetRuntimeName()
	return nil
}

// adopt starts workers for pods that the runtime, or the disk, knows and the API
// does not: they are ended and cleared away.
func (a *Agent) adopt(known map[string]cri.Seen) {
	for _, s := range known {
		a.adoptOne(types.UID(s.PodUID))
	}
	for _, uid := range a.volumes.Pods() {
		a.adoptOne(uid)
	}
	for _, uid := range a.logs.UIDs() {
		a.adoptOne(types.UID(uid))
	}
	if a.cfg.Cgroups != nil {
		for _, uid := range a.cfg.Cgroups.Pods() {
			a.adoptOne(uid)
		}
	}
}

func (a *Agent) adoptOne(uid types.UID) {
	a.mu.Lock()
	known := a.workers[uid] != nil
	a.mu.Unlock()
	if known {
		return
	}
	a.log.Info("pod is not in the API and will be removed", "uid", uid)
	a.tell(uid, func(w *worker) { w.remove(nil, "") })
}
