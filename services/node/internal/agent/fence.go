package agent

import (
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/internal/fence"
	"keelson.dev/services/node/internal/pod"
)

// Fence stops the pods that have opted in when the node's Lease expires. It kills by
// itself; the agent asks it before it starts anything and ends the pods that it stopped.
type Fence interface {
	// Enter must succeed before anything of a pod starts.
	Enter(*corev1.Pod) error
	// Stopped reports whether a pod was stopped. It must not start again.
	Stopped(types.UID) bool
	// Leave is called when nothing is left of a pod.
	Leave(types.UID)
}

// fenceRetry is the delay before a pod that may not start is tried again.
const fenceRetry = time.Second

const reasonFenced = "Fenced"

// fenced ends the pod if it was stopped because the node was cut off.
func (w *worker) fenced(p *corev1.Pod) {
	if w.ended != nil || w.a.cfg.Fence == nil || !w.a.cfg.Fence.Stopped(w.uid) {
		return
	}
	w.ended = &pod.Ending{Reason: reasonFenced, Message: "Pod was stopped because its node could not renew its lease"}
	w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, reasonFenced, "%s", w.ended.Message)
}

// enter reports whether something of the pod may start now.
func (w *worker) enter(p *corev1.Pod) bool {
	if w.a.cfg.Fence == nil {
		return true
	}
	err := w.a.cfg.Fence.Enter(p)
	if err != nil && !errors.Is(err, fence.ErrLapsed) && !errors.Is(err, fence.ErrStopped) {
		w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, reasonFenced, "Pod is not started: %v", err)
	}
	return err == nil
}
