package scheduler

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/telemetry"
	"keelson.dev/services/scheduler/internal/queue"
	"keelson.dev/services/scheduler/internal/state"
)

// report is what is to be written to a pod's status. A newer refusal or nomination of the
// same pod replaces an older one.
type report struct {
	pod *corev1.Pod
	// condition is a refusal; nil if there is none.
	condition *corev1.PodCondition
	// nominate is the node that the pod is nominated for; empty ends a nomination, nil
	// leaves it.
	nominate    *string
	traceparent string
}

// patch returns the report as a strategic merge patch.
func (r *report) patch() ([]byte, error) {
	status := map[string]any{}
	if r.condition != nil {
		status["conditions"] = []corev1.PodCondition{*r.condition}
	}
	if r.nominate != nil {
		status["nominatedNodeName"] = nil
		if *r.nominate != "" {
			status["nominatedNodeName"] = *r.nominate
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"uid": r.pod.UID}, "status": status})
}

// toReport changes what is to be written to a pod's status. The lock must be held.
func (s *Scheduler) toReport(o *corev1.Pod, traceparent string, change func(*report)) {
	key := state.Key{Namespace: o.Namespace, Name: o.Name}
	r := s.reports[key]
	if r.pod != nil && r.pod.UID != o.UID {
		r = report{}
	}
	r.pod = o
	if traceparent != "" {
		r.traceparent = traceparent
	}
	change(&r)
	s.reports[key] = r
	select {
	case s.reporting <- struct{}{}:
	default:
	}
}

// report records in an event and in the pod's status why it has no node. last is what
// this process reported before.
func (s *Scheduler) report(it *queue.Item, last, reason, message string) {
	o := it.Pod.Object
	s.cfg.Events.Warning(s.eventContext(it.Traceparent), o, "FailedScheduling", "%s", message)
	now := metav1.NewTime(s.cfg.Now().Truncate(time.Second))
	c := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message,
		ObservedGeneration: o.Generation, LastTransitionTime: now,
	}
	for i := range o.Status.Conditions {
		old := &o.Status.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
			// With another report in between, the pod at hand may be older than that.
			if old.Reason == c.Reason && old.Message == c.Message && (last == "" || last == message) {
				return
			}
		}
	}
	s.toReport(o, it.Traceparent, func(r *report) { r.condition = &c })
}

// eventContext returns the context of an event: its trace, and the epoch of the present term.
func (s *Scheduler) eventContext(traceparent string) context.Context {
	ctx := context.Background()
	if f := s.fence.Load(); f != nil {
		ctx = client.WithFence(ctx, f)
	}
	return telemetry.ContextWithTraceparent(ctx, traceparent)
}

// writeReports writes refusals until ctx ends.
func (s *Scheduler) writeReports(ctx context.Context) {
	for {
		batch := s.takeReports()
		if len(batch) == 0 {
			select {
			case <-s.reporting:
				continue
			case <-ctx.Done():
				return
			}
		}
		writes := make([]client.Write, 0, len(batch))
		for _, r := range batch {
			patch, err := r.patch()
			if err != nil {
				slog.ErrorContext(ctx, "pod's status cannot be encoded", "error", err)
				continue
			}
			writes = append(writes, client.PatchWrite[*corev1.Pod](r.pod.Namespace, r.pod.Name, types.StrategicMergePatchType, patch,
				client.Subresource("status")).WithTraceparent(r.traceparent))
		}
		results, err := s.cfg.Client.CommitQuietly(ctx, writes...)
		for _, r := range results {
			// A conflict means that another pod has the name now.
			if r.Err != nil && !apierrors.IsNotFound(r.Err) && !apierrors.IsConflict(r.Err) {
				err = r.Err
			}
		}
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "refusals were not written to pods' status", "error", err, "pods", len(batch))
		}
	}
}

func (s *Scheduler) takeReports() []report {
	s.mu.Lock()
	defer s.mu.Unlock()
	var batch []report
	for key, r := range s.reports {
		delete(s.reports, key)
		if batch = append(batch, r); len(batch) == batchSize {
			break
		}
	}
	return batch
}

// underWay returns the keys of the pods that are being bound, for tests and metrics.
func (s *Scheduler) underWay() []state.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]state.Key, 0, len(s.flights))
	for key := range s.flights {
		out = append(out, key)
	}
	return out
}
