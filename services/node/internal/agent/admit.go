package agent

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/pod"
)

// admit admits a pod, or returns why the node refuses it. A pod that already has a start
// time was admitted by an earlier agent. The error is that of ctx.
func (a *Agent) admit(ctx context.Context, p *corev1.Pod) (*pod.Refusal, error) {
	fresh := p.Status.StartTime == nil && p.DeletionTimestamp == nil
	if fresh && a.cfg.Admit != nil {
		if r := a.cfg.Admit(p); r != nil {
			return r, nil
		}
	}
	if r := a.enroll(p, fresh); r != nil || !fresh {
		return r, nil
	}
	r, err := a.admitDevices(ctx, p)
	if r != nil || err != nil {
		a.dismiss(p.UID)
	}
	return r, err
}

// enroll counts a pod's ports and requests as taken. A fresh pod that does not fit beside the
// others is refused.
func (a *Agent) enroll(p *corev1.Pod, fresh bool) *pod.Refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	if fresh {
		others := make([]*corev1.Pod, 0, len(a.admitted))
		for uid, o := range a.admitted {
			if uid != p.UID {
				others = append(others, o)
			}
		}
		var node *corev1.Node
		if a.cfg.Self != nil {
			node = a.cfg.Self()
		}
		if r := pod.Admit(p, node, others); r != nil {
			return r
		}
	}
	a.admitted[p.UID] = p
	return nil
}

// dismiss releases the ports and requests of a pod that has ended.
func (a *Agent) dismiss(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.admitted, uid)
	a.wakeDeferred()
}
