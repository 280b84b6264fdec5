package agent

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/log"
	"keelson.dev/services/node/internal/pod"
)

// RemoveEnded removes the containers and logs of pods that have ended and whose final status
// is in the API, to free disk space. The pods' objects stay, without logs.
func (a *Agent) RemoveEnded(ctx context.Context) error {
	var all []error
	for _, p := range a.ended() {
		if err := a.removeContainers(ctx, p); err != nil {
			all = append(all, fmt.Errorf("pod %s: %s", pod.Key(p), cri.Message(err)))
		}
	}
	return errors.Join(all...)
}

// ended returns the pods that hold nothing of the node but ended containers.
func (a *Agent) ended() []*corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []*corev1.Pod
	for _, w := range a.workers {
		select {
		case <-w.over:
		default:
			continue
		}
		w.mu.Lock()
		if w.pod != nil && pod.Terminal(w.pod) && !w.gone {
			out = append(out, w.pod)
		}
		w.mu.Unlock()
	}
	return out
}

func (a *Agent) removeContainers(ctx context.Context, p *corev1.Pod) error {
	state, err := a.cfg.Runtime.Pod(ctx, string(p.UID))
	if err != nil {
		return err
	}
	for i := range state.Containers {
		c := &state.Containers[i]
		if c.State != cri.StateExited {
			continue
		}
		if err := a.cfg.Runtime.RemoveContainer(ctx, c.ID); err != nil {
			return err
		}
		if c.LogPath != "" {
			log.Remove(c.LogPath)
		}
		a.logs.Unlink(p.Name, p.Namespace, c.Name, c.ID)
	}
	return nil
}
