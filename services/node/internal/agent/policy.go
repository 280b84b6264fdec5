package agent

import (
	"context"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/policy"
)

// Policies enforces network policies on the pods of the node; policy.Enforcer implements it.
type Policies interface {
	// Known sets the pods that run. It is called once, before any pod is started.
	Known(running []policy.Local)
	// Update sets the labels and the address of a pod.
	Update(p *corev1.Pod, addr string)
	// Admit returns once the policies of a pod are in force. Until then no container starts.
	Admit(ctx context.Context, p *corev1.Pod, addr string) error
	// Forget drops a pod whose sandboxes have been stopped.
	Forget(uid types.UID)
}

// policies passes the pod's labels and address to the enforcement of network policies. A sandbox
// that is no longer ready may still have containers, so the pod is only forgotten when its sandboxes
// have been stopped.
func (w *worker) policies(p *corev1.Pod, state *cri.Pod) {
	if w.a.cfg.Policies == nil || p.Spec.HostNetwork {
		return
	}
	if box := state.Sandbox(); box != nil && box.Ready && len(box.IPs) > 0 {
		w.a.cfg.Policies.Update(p, box.IPs[0])
	}
}

// admitPolicies holds a container back until the network policies of its pod are in force.
func (w *worker) admitPolicies(ctx context.Context, p *corev1.Pod, state *cri.Pod) error {
	if w.a.cfg.Policies == nil || p.Spec.HostNetwork {
		return nil
	}
	addr := ""
	if box := state.Sandbox(); box != nil && len(box.IPs) > 0 {
		addr = box.IPs[0]
	}
	err := w.a.cfg.Policies.Admit(ctx, p, addr)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	w.a.log.WarnContext(ctx, "container is held back", "pod", pod.Key(p), "error", err)
	return &startError{reason: reasonConfig, message: err.Error(), retry: time.Now().Add(time.Second)}
}

// forgetPolicies is called when the pod's sandboxes have been stopped.
func (w *worker) forgetPolicies() {
	if w.a.cfg.Policies != nil {
		w.a.cfg.Policies.Forget(w.uid)
	}
}

// runningPods returns the pods that have a sandbox with an address of its own. Those that are not in
// the API are cut off until they have been removed; static pods are set by their workers. The error
// is that of ctx.
func (a *Agent) runningPods(ctx context.Context, pods []*corev1.Pod, seen map[string]cri.Seen) ([]policy.Local, error) {
	byUID := make(map[types.UID]*corev1.Pod, len(pods))
	for _, p := range pods {
		byUID[p.UID] = p
	}
	var out []policy.Local
	done := map[types.UID]bool{}
	for _, s := range seen {
		uid := types.UID(s.PodUID)
		if !s.Sandbox || done[uid] || pod.IsStaticUID(uid) {
			continue
		}
		done[uid] = true
		state, err := a.podState(ctx, uid)
		if err != nil {
			return nil, err
		}
		for i := range state.Sandboxes {
			box := &state.Sandboxes[i]
			if box.HostNetwork || len(box.IPs) == 0 {
				continue
			}
			addr, err := netip.ParseAddr(box.IPs[0])
			if err != nil || !addr.Is4() {
				continue
			}
			if p := byUID[uid]; p != nil {
				out = append(out, policy.NewLocal(p, addr))
			} else {
				out = append(out, policy.UnknownLocal(uid, addr))
			}
			break // the newest
		}
	}
	return out, nil
}

// podState reads a pod's state, again until the runtime answers. The error is that of ctx.
func (a *Agent) podState(ctx context.Context, uid types.UID) (*cri.Pod, error) {
	for {
		state, err := a.cfg.Runtime.Pod(ctx, string(uid))
		if err == nil {
			return state, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}
