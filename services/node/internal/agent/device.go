package agent

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/device"
	"keelson.dev/services/node/internal/pod"
)

// Devices gives containers devices of the node's device plug-ins; it is implemented by
// [device.Registry].
type Devices interface {
	Admit(context.Context, *corev1.Pod) error
	Start(context.Context, *corev1.Pod, *corev1.Container) (*device.Grant, error)
	Release(types.UID)
	Retain(keep func(types.UID) bool)
}

// admitDevices allocates the devices that a pod requests, or returns why the node refuses
// the pod. The error is that of ctx.
func (a *Agent) admitDevices(ctx context.Context, p *corev1.Pod) (*pod.Refusal, error) {
	if a.cfg.Devices == nil {
		return nil, nil
	}
	err := a.cfg.Devices.Admit(ctx, p)
	if err == nil || ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return &pod.Refusal{Reason: "UnexpectedAdmissionError", Message: "Pod was rejected: Allocate failed due to " + err.Error() + ", which is unexpected"}, nil
}

// releaseDevices frees the devices of a pod whose containers have all ended for good.
func (w *worker) releaseDevices() {
	if w.a.cfg.Devices != nil {
		w.a.cfg.Devices.Release(w.uid)
	}
}

// retainDevices frees the devices of pods that disappeared while no agent ran. Every pod of
// which there is anything has a worker by now, or is a static pod that is wanted.
func (a *Agent) retainDevices() {
	if a.cfg.Devices == nil {
		return
	}
	a.cfg.Devices.Retain(func(uid types.UID) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.workers[uid] != nil || a.cfg.Static != nil && pod.IsStaticUID(uid) && (!a.static.known || a.wantsStatic(uid))
	})
}

// grant adds to a container's configuration what its devices need. The pod's own variables
// and mounts come later, and so prevail.
func grant(config *runtimev1.ContainerConfig, g *device.Grant) {
	if g == nil {
		return
	}
	config.Envs = append(g.Envs, config.Envs...)
	config.Mounts = append(g.Mounts, config.Mounts...)
	config.Devices = append(config.Devices, g.Devices...)
	config.CDIDevices = append(config.CDIDevices, g.CDIDevices...)
	for k, v := range g.Annotations {
		if _, own := config.Annotations[k]; !own {
			config.Annotations[k] = v
		}
	}
}
