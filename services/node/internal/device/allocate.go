package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"keelson.dev/services/node/internal/pod"
)

// Allocation is a container's devices of one resource.
type Allocation struct {
	Container string   `json:"container"`
	Resource  string   `json:"resource"`
	Devices   []Device `json:"devices"`
	// PreStart is true if the plug-in is to be called before each start of the container.
	PreStart bool `json:"preStart,omitempty"`
	// Response is the plug-in's ContainerAllocateResponse in protobuf. Nil while it has not
	// answered.
	Response []byte `json:"response"`
}

// Device is an allocated device, and the NUMA nodes that it is near to.
type Device struct {
	ID   string  `json:"id"`
	NUMA []int64 `json:"numa,omitempty"`
}

func (a *Allocation) ids() []string {
	out := make([]string, len(a.Devices))
	for i, d := range a.Devices {
		out[i] = d.ID
	}
	return out
}

// Admit allocates all devices that a pod's containers request. If it returns an error, the
// pod has none; the error is that of ctx if ctx has ended. Resources that no plug-in has
// offered are left to the scheduler. Calls for one pod must not overlap.
func (r *Registry) Admit(ctx context.Context, p *corev1.Pod) error {
	changed := false
	for role, c := range pod.Containers(p) {
		if role == pod.Ephemeral {
			continue
		}
		some, err := r.allocateAll(ctx, p, c)
		changed = changed || some
		if err != nil {
			r.Release(p.UID)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
	if !changed {
		return nil
	}
	if err := r.save(); err != nil {
		r.Release(p.UID)
		return fmt.Errorf("record devices: %w", err)
	}
	return nil
}

// allocateAll allocates the devices that a container lacks. changed is true if there were any.
func (r *Registry) allocateAll(ctx context.Context, p *corev1.Pod, c *corev1.Container) (changed bool, err error) {
	for _, name := range r.requested(c) {
		q := c.Resources.Limits[corev1.ResourceName(name)]
		some, err := r.allocate(ctx, p, c, name, q.Value())
		changed = changed || some
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// requested returns the resources of plug-ins that a container requests, in their order.
func (r *Registry) requested(c *corev1.Container) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name, q := range c.Resources.Limits {
		if r.resources[string(name)] != nil && q.Value() > 0 {
			out = append(out, string(name))
		}
	}
	slices.Sort(out)
	return out
}

// allocate allocates need devices of a resource to a container that has none yet.
func (r *Registry) allocate(ctx context.Context, p *corev1.Pod, c *corev1.Container, name string, need int64) (bool, error) {
	if need > maxDevices {
		need = maxDevices + 1 // more than there can be
	}
	r.mu.Lock()
	o := r.resources[name]
	if a := r.find(p.UID, c.Name, name); a != nil {
		r.mu.Unlock()
		return false, nil
	}
	w := r.want(p, name, int(need))
	_, err := Plan(w)
	plugin := o.plugin
	r.mu.Unlock()
	if err != nil {
		return false, err
	}
	if reused, free := w.reused(); plugin.options.GetGetPreferredAllocationAvailable() && len(reused) < w.Need {
		if w.Preferred, err = plugin.prefer(ctx, append(free, reused...), reused, w.Need); err != nil {
			return false, err
		}
	}
	// Other pods may have got devices meanwhile, or some have become unhealthy.
	r.mu.Lock()
	preferred := w.Preferred
	w = r.want(p, name, int(need))
	w.Preferred = preferred
	ids, err := Plan(w)
	if err != nil {
		r.mu.Unlock()
		return false, err
	}
	a := &Allocation{Container: c.Name, Resource: name, PreStart: plugin.options.GetPreStartRequired()}
	for _, id := range ids {
		a.Devices = append(a.Devices, o.device(id))
	}
	r.pods[p.UID] = append(r.pods[p.UID], a)
	r.mu.Unlock()
	response, err := plugin.allocate(ctx, ids)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.pods[p.UID] = slices.DeleteFunc(r.pods[p.UID], func(b *Allocation) bool { return a == b })
		return false, err
	}
	a.Response = response
	return true, nil
}

// find returns a container's allocation, or nil. The lock is held.
func (r *Registry) find(uid types.UID, container, resource string) *Allocation {
	for _, a := range r.pods[uid] {
		if a.Container == container && a.Resource == resource {
			return a
		}
	}
	return nil
}

// want returns what a container's request is decided by. The lock is held.
func (r *Registry) want(p *corev1.Pod, name string, need int) Want {
	w := Want{Resource: name, Need: need, Healthy: r.resources[name].healthy(), Taken: map[string]bool{}, Reusable: map[string]bool{}}
	for _, list := range r.pods {
		for _, a := range list {
			if a.Resource == name {
				for _, d := range a.Devices {
					w.Taken[d.ID] = true
				}
			}
		}
	}
	for role, c := range pod.Containers(p) {
		a := r.find(p.UID, c.Name, name)
		if a == nil {
			continue
		}
		for _, d := range a.Devices {
			if role == pod.Init {
				w.Reusable[d.ID] = true
			} else {
				delete(w.Reusable, d.ID) // it is in use as long as the pod runs
			}
		}
	}
	return w
}

// Grant is what a container's devices add to its configuration.
type Grant struct {
	Envs        []*runtimev1.KeyValue
	Mounts      []*runtimev1.Mount
	Devices     []*runtimev1.Device
	CDIDevices  []*runtimev1.CDIDevice
	Annotations map[string]string
}

// Start prepares the devices of a container for its next start. The result is nil if it has
// none. If its pod was admitted before a plug-in offered the resource, they are allocated now.
func (r *Registry) Start(ctx context.Context, p *corev1.Pod, c *corev1.Container) (*Grant, error) {
	changed, err := r.allocateAll(ctx, p, c)
	if changed {
		err = errors.Join(err, r.save())
	}
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	var held []*Allocation
	plugins := map[string]*plugin{}
	for _, a := range r.pods[p.UID] {
		if a.Container == c.Name {
			held = append(held, a)
			if o := r.resources[a.Resource]; o != nil {
				plugins[a.Resource] = o.plugin
			}
		}
	}
	r.mu.Unlock()
	if len(held) == 0 {
		return nil, nil
	}
	slices.SortFunc(held, func(a, b *Allocation) int { return slices.Compare([]string{a.Resource}, []string{b.Resource}) })
	var responses []*pluginapi.ContainerAllocateResponse
	for _, a := range held {
		if plugin := plugins[a.Resource]; a.PreStart && plugin == nil {
			return nil, fmt.Errorf("the device plug-in of %s, which prepares devices for each start, is not connected", a.Resource)
		} else if a.PreStart {
			if err := plugin.preStart(ctx, a.ids()); err != nil {
				return nil, err
			}
		}
		response := &pluginapi.ContainerAllocateResponse{}
		if err := proto.Unmarshal(a.Response, response); err != nil {
			return nil, fmt.Errorf("recorded devices of %s: %w", a.Resource, err)
		}
		responses = append(responses, response)
	}
	return merge(ctx, responses), nil
}

// merge returns what several plug-ins' answers add to one container. Of two answers for the
// same name or path the first counts, as with the kubelet.
func merge(ctx context.Context, responses []*pluginapi.ContainerAllocateResponse) *Grant {
	g := &Grant{Annotations: map[string]string{}}
	seen := map[string]bool{}
	first := func(what, name string) bool {
		key := what + "\x00" + name
		if seen[key] {
			slog.WarnContext(ctx, "two device plug-ins set the same of one container", "what", what, "name", name)
			return false
		}
		seen[key] = true
		return true
	}
	for _, a := range responses {
		for _, name := range sorted(a.Envs) {
			if first("variable", name) {
				g.Envs = append(g.Envs, &runtimev1.KeyValue{Key: name, Value: []byte(a.Envs[name])})
			}
		}
		for _, m := range a.Mounts {
			if first("mount", m.ContainerPath) {
				g.Mounts = append(g.Mounts, &runtimev1.Mount{ContainerPath: m.ContainerPath, HostPath: m.HostPath, Readonly: m.ReadOnly})
			}
		}
		for _, d := range a.Devices {
			if first("device", d.ContainerPath) {
				g.Devices = append(g.Devices, &runtimev1.Device{ContainerPath: d.ContainerPath, HostPath: d.HostPath, Permissions: d.Permissions})
			}
		}
		for _, d := range a.CdiDevices {
			if key := "CDI\x00" + d.Name; !seen[key] { // plug-ins may share one
				seen[key] = true
				g.CDIDevices = append(g.CDIDevices, &runtimev1.CDIDevice{Name: d.Name})
			}
		}
		for _, name := range sorted(a.Annotations) {
			if first("annotation", name) {
				g.Annotations[name] = a.Annotations[name]
			}
		}
	}
	return g
}

// Allocations returns the devices of a pod that are held.
func (r *Registry) Allocations(uid types.UID) []Allocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Allocation
	for _, a := range r.pods[uid] {
		if a.Response != nil {
			out = append(out, *a)
		}
	}
	return out
}

// Release frees the devices of a pod of which no container can run any more.
func (r *Registry) Release(uid types.UID) { r.Retain(func(u types.UID) bool { return u != uid }) }

// Retain frees the devices of all pods for which keep returns false.
func (r *Registry) Retain(keep func(types.UID) bool) {
	r.mu.Lock()
	before := len(r.pods)
	for uid := range r.pods {
		if !keep(uid) {
			delete(r.pods, uid)
		}
	}
	changed := len(r.pods) != before
	r.mu.Unlock()
	if !changed {
		return
	}
	if err := r.save(); err != nil {
		// The record still holds them; the next write, or the next agent's Retain, does not.
		slog.WarnContext(context.Background(), "released devices were not recorded", "error", err)
	}
}
