package simulated

import (
	"context"
	"hash/fnv"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/status"
)

// due reports whether a pod needs a write, and when.
func due(p *corev1.Pod) (at time.Time, needed bool) {
	switch {
	case p.DeletionTimestamp != nil:
		return time.Time{}, true
	case done(p):
		return time.Time{}, false
	case p.Status.Phase != corev1.PodRunning:
		return time.Time{}, true
	}
	if d := lifetime(p); d > 0 && p.Status.StartTime != nil {
		return p.Status.StartTime.Add(d), true
	}
	return time.Time{}, false
}

// write returns the next write for a pod, or false if none is due.
func (s *Simulation) write(p *corev1.Pod, now time.Time) (client.Write, bool) {
	at, needed := due(p)
	if !needed || now.Before(at) {
		return client.Write{}, false
	}
	if p.DeletionTimestamp != nil {
		return client.DeleteWrite[*corev1.Pod](p.Namespace, p.Name, client.Grace(0), client.UID(p.UID)), true
	}
	ended := p.Status.Phase == corev1.PodRunning
	out := &corev1.Pod{ObjectMeta: *p.ObjectMeta.DeepCopy(), Spec: p.Spec}
	out.Status = s.status(p, now, ended)
	return client.StatusWrite(out), true
}

// status returns the status that a real node would report for the pod.
func (s *Simulation) status(p *corev1.Pod, now time.Time, ended bool) corev1.PodStatus {
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.UID))
	box := cri.Sandbox{ID: string(p.UID), Ready: !ended, IPs: []string{podIP(h.Sum32())}, HostNetwork: p.Spec.HostNetwork, CreatedAt: now}
	state := &cri.Pod{UID: string(p.UID), Sandboxes: []cri.Sandbox{box}}
	started := now
	if p.Status.StartTime != nil {
		started = p.Status.StartTime.Time
	}
	add := func(c *corev1.Container, over bool) {
		inst := cri.Container{
			ID: string(p.UID) + "/" + c.Name, Name: c.Name, SandboxID: box.ID, State: cri.StateRunning,
			CreatedAt: started, StartedAt: started, Image: c.Image, ImageRef: c.Image,
		}
		if over {
			inst.State, inst.FinishedAt = cri.StateExited, now
		}
		state.Containers = append(state.Containers, inst)
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		add(c, ended || !pod.IsSidecar(c))
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i], ended)
	}
	always := func(string) bool { return true }
	out := status.Make(status.View{
		Pod: p, Runtime: state, Now: now, RuntimeName: "simulated", HostIPs: []string{hostIP(s.own[p.Spec.NodeName])},
		Started: always, Ready: always, Finished: ended,
	})
	if out.StartTime == nil {
		t := metav1.NewTime(now.Truncate(time.Second))
		out.StartTime = &t
	}
	return out
}

// work writes for the pods in the queue, in batches, until ctx ends.
func (s *Simulation) work(ctx context.Context) error {
	for {
		items, err := s.queue.take(ctx, batch)
		if err != nil {
			return nil
		}
		var writes []client.Write
		var sent []item
		now := time.Now()
		for _, it := range items {
			p, ok := s.pods.Get(it.key.Namespace, it.key.Name)
			if !ok {
				continue
			}
			if w, ok := s.write(p, now); ok {
				writes = append(writes, w.WithTraceparent(it.traceparent))
				sent = append(sent, it)
			}
		}
		if len(writes) == 0 {
			continue
		}
		s.commit(ctx, sent, writes)
	}
}

// commit sends a batch and queues the writes that must be retried.
func (s *Simulation) commit(ctx context.Context, sent []item, writes []client.Write) {
	call, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	results, err := s.cfg.Client.CommitQuietly(call, writes...)
	if err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "simulated pods were not written", "pods", len(writes)-len(results), "error", err)
	}
	again := time.Now().Add(time.Second)
	for i, it := range sent {
		switch {
		case i >= len(results):
			s.queue.add(it.key, again, it.traceparent)
		case results[i].Err == nil || apierrors.IsNotFound(results[i].Err):
		case apierrors.IsConflict(results[i].Err):
			// The event with the newer version may already have arrived.
			s.queue.add(it.key, time.Now().Add(100*time.Millisecond), it.traceparent)
		default:
			slog.WarnContext(ctx, "simulated pod was not written", "pod", it.key.String(), "error", results[i].Err)
			s.queue.add(it.key, again.Add(9*time.Second), it.traceparent)
		}
	}
}
