// Package device gives containers the devices that the node's device plug-ins offer. It
// speaks the kubelet's device plug-in protocol v1beta1, so that plug-ins run unmodified.
//
// # States
//
// A resource is
//
//   - serving while the stream ListAndWatch of its plug-in is open. Its capacity is the number
//     of devices in the last message of the stream, its allocatable the number of healthy ones;
//   - stopped when that stream has ended. The devices still count as capacity, but none is
//     healthy. After a restart of the agent all resources are stopped, and their devices are
//     unknown until the plug-ins register again;
//   - gone when it has been stopped for 5 minutes. Its capacity is 0; a pod that asks for it is
//     refused, as the resource remains known.
//
// A registration makes a resource serving from each state. If the resource has a plug-in
// already, the new one replaces it, and the old one's stream ends.
//
// A device is free, or allocated to a container. The devices of an init container are given
// to the pod's later containers again, in the order in which the containers start; a sidecar
// keeps its own. An allocation is
//
//   - reserved while the plug-in is asked for it (Allocate). The reservation is made in one
//     step with the choice of the device, so that no other pod can get it;
//   - held once the plug-in has answered and the allocation is on disk, until [Registry.Release].
//
// # Failures
//
//   - The agent ends before an allocation is on disk: nothing of the pod has been started. Its
//     successor admits the pod anew.
//   - It ends after that: the successor reads the allocation, and asks no plug-in again.
//   - A pod disappears while no agent runs: [Registry.Retain] releases what no pod holds.
//   - The record cannot be read: the node does not start, because devices in use could be
//     given away.
//   - A plug-in does not answer in time, or answers with an error: the pod is refused, and the
//     devices are free again. Before the start of a container it is tried again.
//   - A plug-in sends more than is bounded, or devices without valid IDs: its stream is closed,
//     as if it had ended.
//
// # Invariants
//
//   - A device is never allocated to two pods, nor to two containers of one pod of which the
//     first is not an init container.
//   - A device is released only when no container of its pod can run any more, even if the
//     pod's object is gone.
//   - No lock is held while a plug-in is called.
package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	// stopGrace is how long a plug-in may be away until its resource is gone, as with the
	// kubelet: long enough for an upgrade of the plug-in.
	stopGrace = 5 * time.Minute
	// maxResources and maxDevices bound what all plug-ins together, and one of them, may
	// offer; maxID is the size of a device's ID in bytes.
	maxResources = 256
	maxDevices   = 1 << 16
	maxID        = 1024
	// maxMessage bounds a message of a plug-in, and maxResponse what is recorded of an
	// allocation, in bytes.
	maxMessage  = 16 << 20
	maxResponse = 1 << 20
	// optionsPatience, callPatience bound a plug-in's answers. The kubelet's limit of
	// PreStartContainer is callPatience; its calls of Allocate have none.
	optionsPatience = 10 * time.Second
	callPatience    = pluginapi.KubeletPreStartContainerRPCTimeoutInSecs * time.Second
)

// Config configures a Registry.
type Config struct {
	// Dir is the directory of the plug-ins' sockets, and of the socket at which they register.
	Dir string
	// Record is the file that holds the allocations.
	Record string
	// Changed is called when capacity or allocatable resources may have changed. It must not
	// block. It may be nil.
	Changed func()
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Registry holds the device plug-ins of a node, and which devices its containers have.
type Registry struct {
	cfg Config
	// calls are the goroutines that read the plug-ins' streams.
	calls sync.WaitGroup
	disk  sync.Mutex // serializes writes of the record; it is locked before mu

	mu        sync.Mutex
	base      context.Context // of the running Run, or nil
	resources map[string]*offer
	pods      map[types.UID][]*Allocation
}

// offer is a resource and what its plug-in has last said.
type offer struct {
	plugin  *plugin   // nil unless the resource is serving
	stopped time.Time // if plugin is nil
	devices map[string]*pluginapi.Device
}

func (o *offer) gone(now time.Time) bool { return o.plugin == nil && now.Sub(o.stopped) >= stopGrace }

// New reads the allocations of a predecessor.
func New(cfg Config) (*Registry, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	r := &Registry{cfg: cfg, resources: map[string]*offer{}, pods: map[types.UID][]*Allocation{}}
	saved, err := load(cfg.Record)
	if err != nil {
		return nil, err
	}
	for _, name := range saved.Resources {
		r.resources[name] = &offer{stopped: cfg.Now()}
	}
	for uid, list := range saved.Pods {
		r.pods[uid] = list
	}
	return r, nil
}

// Capacity returns the capacity and the allocatable quantity of each resource that a plug-in
// offers or has offered.
func (r *Registry) Capacity() (capacity, allocatable corev1.ResourceList) {
	r.mu.Lock()
	defer r.mu.Unlock()
	capacity, allocatable = corev1.ResourceList{}, corev1.ResourceList{}
	for name, o := range r.resources {
		all, healthy := 0, 0
		if !o.gone(r.cfg.Now()) {
			all, healthy = len(o.devices), len(o.healthy())
		}
		capacity[corev1.ResourceName(name)] = *resource.NewQuantity(int64(all), resource.DecimalSI)
		allocatable[corev1.ResourceName(name)] = *resource.NewQuantity(int64(healthy), resource.DecimalSI)
	}
	return capacity, allocatable
}

// Allocatable returns the healthy devices of each resource.
func (r *Registry) Allocatable() map[string][]Device {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string][]Device{}
	for name, o := range r.resources {
		for _, id := range slices.Sorted(maps.Keys(o.healthy())) {
			out[name] = append(out[name], o.device(id))
		}
	}
	return out
}

// healthy returns the IDs of the devices that may be allocated.
func (o *offer) healthy() map[string]bool {
	out := map[string]bool{}
	if o.plugin == nil {
		return out
	}
	for id, d := range o.devices {
		if d.Health == pluginapi.Healthy {
			out[id] = true
		}
	}
	return out
}

func (o *offer) device(id string) Device {
	d := Device{ID: id}
	for _, n := range o.devices[id].GetTopology().GetNodes() {
		d.NUMA = append(d.NUMA, n.ID)
	}
	return d
}

// connect makes a plug-in the one that serves its resource.
func (r *Registry) connect(p *plugin) error {
	r.mu.Lock()
	base, o := r.base, r.resources[p.resource]
	fresh := o == nil
	if base == nil || fresh && len(r.resources) >= maxResources {
		r.mu.Unlock()
		return errors.Join(fmt.Errorf("resource %s: the node is stopping, or has %d resources of device plug-ins already", p.resource, maxResources), p.close())
	}
	if fresh {
		o = &offer{}
		r.resources[p.resource] = o
	}
	old := o.plugin
	o.plugin = p
	ctx, stop := context.WithCancel(base)
	p.stop = stop
	r.calls.Go(func() {
		defer stop()
		err := errors.Join(p.watch(ctx, func(list []*pluginapi.Device) error { return r.listed(p, list) }), p.close())
		r.disconnect(p)
		if ctx.Err() == nil {
			slog.WarnContext(ctx, "device plug-in has stopped", "resource", p.resource, "endpoint", p.endpoint, "error", err)
		}
	})
	r.mu.Unlock()
	if old != nil {
		old.stop()
	}
	slog.InfoContext(base, "device plug-in registered", "resource", p.resource, "endpoint", p.endpoint)
	if !fresh {
		return nil
	}
	return r.save()
}

// disconnect records that a plug-in's stream has ended.
func (r *Registry) disconnect(p *plugin) {
	r.mu.Lock()
	if o := r.resources[p.resource]; o.plugin == p {
		o.plugin, o.stopped = nil, r.cfg.Now()
		for id, d := range o.devices { // until the next list
			o.devices[id] = &pluginapi.Device{ID: id, Health: pluginapi.Unhealthy, Topology: d.Topology}
		}
	}
	r.mu.Unlock()
	r.cfg.Changed()
}

// listed records the devices that a plug-in has sent.
func (r *Registry) listed(p *plugin, list []*pluginapi.Device) error {
	if len(list) > maxDevices {
		return fmt.Errorf("resource %s: %d devices, at most %d are allowed", p.resource, len(list), maxDevices)
	}
	devices := make(map[string]*pluginapi.Device, len(list))
	for _, d := range list {
		if d.GetID() == "" || len(d.GetID()) > maxID {
			return fmt.Errorf("resource %s: a device's ID has %d bytes, want 1 to %d", p.resource, len(d.GetID()), maxID)
		}
		devices[d.ID] = d
	}
	r.mu.Lock()
	if o := r.resources[p.resource]; o.plugin == p {
		o.devices = devices
	}
	r.mu.Unlock()
	r.cfg.Changed()
	return nil
}
