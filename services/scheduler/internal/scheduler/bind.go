package scheduler

import (
	"context"
	"errors"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// bind binds a batch with one message.
func (s *Scheduler) bind(ctx context.Context, batch []*flight) {
	writes := make([]client.Write, len(batch))
	for i, f := range batch {
		writes[i] = client.BindWrite(f.item.Pod.Object, f.node).WithTraceparent(f.trace.traceparent(f.item))
	}
	results, err := s.cfg.Client.CommitQuietly(ctx, writes...)
	for i, f := range batch {
		switch {
		case i < len(results):
			s.settle(f, results[i].Err)
		default:
			s.settle(f, err)
		}
	}
}

// settle ends a flight according to the apiserver's answer.
func (s *Scheduler) settle(f *flight, err error) {
	if err == nil {
		s.bound(f)
		return
	}
	f.trace.end(err)
	s.undo([]*flight{f}, err)
}

func (s *Scheduler) bound(f *flight) {
	p := f.item.Pod
	s.cfg.Events.Normal(s.eventContext(f.trace.traceparent(f.item)), p.Object, "Scheduled", "Successfully assigned %s/%s to %s", p.Namespace, p.Name, f.node)
	f.trace.end(nil)
	s.metrics.scheduled(s.cfg.Now().Sub(f.item.Added), f.item.Attempts)
}

// undo reverts assumptions and returns the pods to the queue.
func (s *Scheduler) undo(batch []*flight, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range batch {
		s.take(f, err)
	}
	s.poke()
}

// take reverts one assumption. The lock must be held.
func (s *Scheduler) take(f *flight, err error) {
	key := f.item.Key()
	if s.flights[key] != f {
		return // confirmed or gone meanwhile
	}
	s.land(key, f)
	if s.env.Pod(key) == f.assumed {
		s.env.RemovePod(key)
		s.happened(&plugin.Event{Went: f.assumed})
	}
	s.metrics.failed()
	if !errors.Is(err, context.Canceled) && !apierrors.IsNotFound(err) {
		slog.WarnContext(context.Background(), "pod was not bound", "pod", key.Namespace+"/"+key.Name, "node", f.node, "error", err)
	}
	if s.requeue(f) && !errors.Is(err, context.Canceled) {
		last := f.item.Message
		f.item.Message = err.Error()
		s.report(f.item, last, corev1.PodReasonSchedulerError, err.Error())
	}
}

// requeue returns the current version of a pod to the queue if it still waits for a
// node.
func (s *Scheduler) requeue(f *flight) bool {
	p := f.item.Pod
	if now, ok := s.cfg.Caches.Pods.Get(p.Namespace, p.Name); ok {
		if now.UID != p.UID || now.Spec.NodeName != "" || now.DeletionTimestamp != nil {
			return false // another event brings it, or has
		}
		f.item.Pod = state.NewPod(now)
		if node := now.Status.NominatedNodeName; node != "" {
			s.env.Nominate(f.item.Pod, node)
		}
	} else {
		return false
	}
	s.queue.Retry(f.item)
	return true
}

// land ends a flight, whatever its outcome.
func (s *Scheduler) land(key state.Key, f *flight) {
	delete(s.flights, key)
	if f.plan != nil {
		f.plan.Release()
		delete(s.waiting, key)
	}
}
