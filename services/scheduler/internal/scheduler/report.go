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

// report is a refusal to be written to a pod's status. It is replaced by a newer one
// for the same pod.
type report struct {
	pod         *corev1.Pod
	condition   corev1.PodCondition
	traceparent string
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
	s.reports[it.Key()] = report{pod: o, condition: c, traceparent: it.Traceparent}
	select {
	case s.reporting <- struct{}{}:
	default:
	}
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
			patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.PodCondition{r.condition}}})
			if err != nil {
				slog.ErrorContext(ctx, "pod's condition cannot be encoded", "error", err)
				continue
			}
			writes = append(writes, client.PatchWrite[*corev1.Pod](r.pod.Namespace, r.pod.Name, types.StrategicMergePatchType, patch,
				client.Subresource("status")).WithTraceparent(r.traceparent))
		}
		results, err := s.cfg.Client.CommitQuietly(ctx, writes...)
		for _, r := range results {
			if r.Err != nil && !apierrors.IsNotFound(r.Err) {
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
