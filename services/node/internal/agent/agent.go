// Package agent runs the pods that are bound to its node. One worker per pod compares the
// pod's desired state with what the container runtime has and acts on the difference.
//
// The agent keeps no state that it cannot rebuild. It may be killed at any time; its
// successor takes over the running containers as they are. It must never restart a
// container that runs as it should, and it must not make decisions that belong to package
// pod.
//
// Of a container's input and output, only what Kubernetes exposes on purpose reaches
// statuses and events: the termination message (bounded in size but otherwise unchanged,
// because programs parse it), the output of a failing exec probe, and the name of a program
// that could not be started. Hook commands and their output, arguments and environment
// variables never leave the node. Spans and logs contain none of these.
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
	"keelson.dev/services/internal/ops"
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

// Config configures an Agent.
type Config struct {
	Node    string
	Client  *client.Client
	Runtime *cri.Client
	Metrics *Metrics
	// DataDir holds the pods' volumes and the ledger of their logs.
	DataDir string
	// ContainerLogDir holds one symbolic link per container log, for log collectors.
	ContainerLogDir string
	Settings        pod.Settings
	Cgroups         *cgroup.Hierarchy
	Events          *event.Recorder
	// LogSize is the size in bytes at which a container's log is rotated; 0 means 10 MiB.
	LogSize int64
	// HostIPs returns the node's addresses.
	HostIPs func() []string
	// Self returns the node's own object, or nil while it is unknown. The field may be nil.
	Self func() *corev1.Node
	// Fence stops opted-in pods when the node is cut off; see fence.go. It may be nil.
	Fence Fence
	// Admit returns why the node takes no such pod now, or nil. It is asked before the pod is
	// compared with the node and its other pods. The field may be nil.
	Admit func(*corev1.Pod) *pod.Refusal
	// Devices gives containers devices of the node's device plug-ins. It may be nil.
	Devices Devices
	// Allocatable returns the node's allocatable resources.
	Allocatable func() corev1.ResourceList
	// Services returns the cluster's Services. ServicesSynced is closed when they have been
	// listed once; a nil channel means that there is nothing to wait for.
	Services       func() []*corev1.Service
	ServicesSynced <-chan struct{}
	// HostPorts sets the host ports that lead to a pod: its ports once the pod has an
	// address, and nil when it has ended. key is the pod's UID. The field may be nil.
	HostPorts func(key string, ports []cni.HostPort)
	// KnownHostPorts sets the host ports of all running pods. It is called once, before any
	// pod is started, when the runtime and the API have been read. The field may be nil.
	KnownHostPorts func(pods map[string][]cni.HostPort)
	// Policies enforces network policies. It may be nil; then there are none.
	Policies Policies
	// Begin is called once, before any pod is started, with the IDs of the sandboxes that
	// the runtime has. The field may be nil.
	Begin func(sandboxes map[string]bool)
	// Features returns what a handler of the runtime supports; "" is the default handler.
	// The field may be nil.
	Features func(handler string) corev1.NodeRuntimeHandlerFeatures
	// Static is the source of static pods, or nil.
	Static Source
	// NetworkReady reports whether the container runtime can set up pod networks.
	NetworkReady func() bool
}

// Agent runs the pods of one node.
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
	// progress is that of watchLocks.
	progress ops.Progress

	addresses addresses
	// began is true once every pod in the API has a worker. From then on, anything in the
	// runtime without a worker is an orphan.
	began atomic.Bool
	// runtimeName is the prefix of container IDs in statuses. It is set before any worker
	// starts.
	runtimeName string

	mu      sync.Mutex
	workers map[types.UID]*worker
	// admitted holds the pods that the node has admitted and that have not ended.
	admitted map[types.UID]*corev1.Pod
	// deferred holds the pods whose resize waits for resources.
	deferred map[types.UID]bool
	static   statics
	base     context.Context
	wg       sync.WaitGroup
}

// parallelPulls is the number of images that are pulled at the same time.
const parallelPulls = 3

// New returns an agent. It does nothing until Run is called.
func New(cfg Config) *Agent {
	a := &Agent{cfg: cfg, workers: map[types.UID]*worker{}, admitted: map[types.UID]*corev1.Pod{}, rotate: make(chan struct{}), progress: ops.Progress{Patience: stuck}, deferred: map[types.UID]bool{}, static: newStatics(), log: slog.With("node", cfg.Node)}
	a.pods = client.NewCache(cfg.Client, client.CacheOptions[*corev1.Pod]{
		FieldSelector: "spec.nodeName=" + cfg.Node,
		Transform: func(p *corev1.Pod) *corev1.Pod {
			p.ManagedFields = nil
			if !pod.IsMirror(p) {
				delete(p.Annotations, pod.AnnotationSource) // only the node says that a pod is static
			}
			return p
		},
	})
	a.writer = status.NewWriter(api{cfg.Client}, a.pods.Get)
	a.images = image.NewPuller(cfg.Runtime, cfg.Events, parallelPulls)
	a.logs = log.Layout{Pods: cfg.Settings.LogDir, Containers: cfg.ContainerLogDir, Ledger: filepath.Join(cfg.DataDir, "log")}
	a.probes = probe.New(cfg.Runtime, cfg.Events, a.wake)
	return a
}

// Pods returns the cache of this node's pods.
func (a *Agent) Pods() *client.Cache[*corev1.Pod] { return a.pods }

// VolumePaths returns the paths of a pod's mounted volumes by name.
func (a *Agent) VolumePaths(uid types.UID) map[string]string {
	if !a.began.Load() {
		return nil
	}
	ready := a.volumes.Ready(uid)
	out := make(map[string]string, len(ready))
	for name, v := range ready {
		out[name] = v.Path
	}
	return out
}

// api implements status.API on a client.
type api struct{ *client.Client }

// GetPod implements status.API.
func (a api) GetPod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return client.For[*corev1.Pod](a.Client).Get(ctx, namespace, name)
}

// Run runs pods until ctx ends. Containers keep running after that.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.base = ctx
	a.objects = newObjects(ctx, a.cfg.Client, a.wake)
	a.volumes = volume.New(volume.Config{
		Dir: a.cfg.DataDir + "/pods", Objects: a.objects, HostIPs: a.cfg.HostIPs, Allocatable: a.cfg.Allocatable,
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
	start("lock watch", a.watchLocks)
	start("volume release", a.releaseVolumes)
	start("mirror pods", a.keepMirrors)
	loops.Wait()
	a.wg.Wait()
	a.probes.Close()
	a.objects.wait()
	return first
}

// dispatch hands pods to their workers: static pods once the runtime has answered, and the
// others once the pod cache has synced, too. Pods of neither source are removed only then.
func (a *Agent) dispatch(ctx context.Context) error {
	seen, err := a.survey(ctx)
	if err != nil {
		return nil // ctx has ended
	}
	if a.cfg.Static != nil {
		var loops sync.WaitGroup
		defer loops.Wait()
		loops.Go(func() { _ = a.runStatic(ctx, seen) })
		loops.Go(func() { _ = a.cfg.Static.Run(ctx, a.setStatic) })
		select {
		case <-a.static.first:
		case <-ctx.Done():
			return nil
		}
	}
	select {
	case <-a.pods.Synced():
	case <-ctx.Done():
		return nil
	}
	known, err := a.list(ctx)
	if err != nil {
		return nil
	}
	a.mu.Lock()
	for _, p := range a.pods.List() {
		if pod.IsMirror(p) {
			continue // its static pod is admitted
		}
		if p.Status.StartTime != nil && !pod.Terminal(p) {
			a.admitted[p.UID] = pod.Recorded(p).Apply(p)
		}
	}
	a.mu.Unlock()
	if a.cfg.KnownHostPorts != nil {
		a.cfg.KnownHostPorts(runningHostPorts(a.pods.List(), known))
		a.WakeAll() // static pods report theirs
	}
	if a.cfg.Policies != nil {
		running, err := a.runningPods(ctx, a.pods.List(), known)
		if err != nil {
			return nil
		}
		a.cfg.Policies.Known(running)
	}
	a.pods.Subscribe(a.onPod)
	a.adopt(known)
	a.retainDevices()
	a.began.Store(true)
	<-ctx.Done()
	return nil
}

// onPod handles one event of the pod watch.
func (a *Agent) onPod(ev client.Event[*corev1.Pod]) {
	a.addresses.update(ev.Object, ev.Old, ev.Type == client.Deleted)
	if pod.IsMirror(ev.Object) {
		a.onMirror(ev)
		return
	}
	switch ev.Type {
	case client.Added, client.Modified:
		a.deliver(ev.Object.UID, func(w *worker) { w.update(ev.Object, ev.Old, ev.Traceparent) })
	case client.Deleted:
		// A force-deleted pod still runs for a moment. Like the kubelet, stop counting its
		// host ports and requests at once: the scheduler may already have given them to the
		// next pod.
		a.dismiss(ev.Object.UID)
		a.deliver(ev.Object.UID, func(w *worker) { w.remove(ev.Object, ev.Traceparent) })
	}
}

// deliver applies a change to the pod's worker and starts the worker if there is none. The
// change is applied before a new worker's first sync, which would otherwise find no pod,
// and under the lock that retire takes, so it cannot be lost between an old worker's last
// sync and its retirement.
func (a *Agent) deliver(uid types.UID, change func(*worker)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.workers[uid]
	if w != nil {
		change(w)
		return
	}
	w = newWorker(a, uid)
	a.workers[uid] = w
	change(w)
	a.wg.Go(func() { w.run(a.base) })
}

// retire removes a worker that has nothing left to do. It returns false if the pod has
// appeared again in the meantime.
func (a *Agent) retire(w *worker) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.gone {
		return false
	}
	delete(a.workers, w.uid)
	if a.static.running[w.uid] != nil {
		nudge(a.static.changed)
	}
	return true
}

// wake makes a pod's worker sync again. It does nothing for unknown pods.
func (a *Agent) wake(uid types.UID) {
	a.mu.Lock()
	w := a.workers[uid]
	a.mu.Unlock()
	if w != nil {
		w.poke()
	}
}

// WakeAll makes all workers sync again, because the runtime or its network has become
// usable.
func (a *Agent) WakeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		w.poke()
	}
}

// survey returns what the runtime has before anything is started, and reads its name.
func (a *Agent) survey(ctx context.Context) (map[string]cri.Seen, error) {
	seen, err := a.list(ctx)
	if err != nil {
		return nil, err
	}
	for a.readRuntimeName(ctx) != nil {
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
	if a.cfg.Begin == nil {
		return seen, nil
	}
	sandboxes := map[string]bool{}
	for id, s := range seen {
		if s.Sandbox {
			sandboxes[id] = true
		}
	}
	a.cfg.Begin(sandboxes)
	return seen, nil
}

// list lists what the runtime has. It tries again until the runtime answers; the error is
// that of ctx.
func (a *Agent) list(ctx context.Context) (map[string]cri.Seen, error) {
	for {
		seen, err := a.cfg.Runtime.List(ctx)
		if err == nil {
			return seen, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// pause waits before the runtime is asked again.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(500 * time.Millisecond):
		return nil
	}
}

// readRuntimeName asks the runtime for its name.
func (a *Agent) readRuntimeName(ctx context.Context) error {
	v, err := a.cfg.Runtime.Version(ctx)
	if err != nil {
		return err
	}
	a.runtimeName = v.GetRuntimeName()
	return nil
}

// adopt starts workers for pods that exist in the runtime or on disk but not in the API.
// The workers stop these pods and remove what is left of them.
func (a *Agent) adopt(known map[string]cri.Seen) {
	for _, uid := range a.remains(known) {
		a.adoptPod(uid)
	}
}

// remains returns the UIDs of the pods of which something is in the runtime or on disk. A UID
// may occur more than once.
func (a *Agent) remains(known map[string]cri.Seen) []types.UID {
	out := a.volumes.Pods()
	for _, s := range known {
		out = append(out, types.UID(s.PodUID))
	}
	for _, uid := range a.logs.UIDs() {
		out = append(out, types.UID(uid))
	}
	if a.cfg.Cgroups != nil {
		out = append(out, a.cfg.Cgroups.Pods()...)
	}
	return out
}

// adoptPod starts a worker that removes a pod, unless the pod already has a worker, or may be
// a static pod that is wanted.
func (a *Agent) adoptPod(uid types.UID) {
	a.mu.Lock()
	keep := a.workers[uid] != nil
	if a.cfg.Static != nil && pod.IsStaticUID(uid) {
		keep = keep || !a.static.known || a.wantsStatic(uid)
	}
	a.mu.Unlock()
	if keep {
		return
	}
	a.log.InfoContext(a.base, "pod is neither in the API nor static and will be removed", "pod_uid", uid)
	a.deliver(uid, func(w *worker) { w.remove(nil, "") })
}
