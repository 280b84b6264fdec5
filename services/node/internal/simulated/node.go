package simulated

import (
	"context"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
)

// revive sets nodes ready again that a controller has marked as not ready, because the
// simulation was stopped or slow.
func (s *Simulation) revive(ctx context.Context) error {
	lost := newQueue()
	nodes := client.NewCache(s.cfg.Client, client.CacheOptions[*corev1.Node]{
		LabelSelector: Label + "=true",
		Transform: func(n *corev1.Node) *corev1.Node {
			n.ManagedFields = nil
			n.Status.Images = nil
			return n
		},
	})
	nodes.Subscribe(func(ev client.Event[*corev1.Node]) {
		if _, ours := s.own[ev.Object.Name]; !ours {
			return
		}
		if ev.Type == client.Deleted {
			lost.drop(client.KeyOf(ev.Object))
		} else if !ready(ev.Object) {
			lost.add(client.KeyOf(ev.Object), time.Time{}, "")
		}
	})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		_ = nodes.Run(ctx)
	}()
	defer func() { <-watched }()
	for {
		items, err := lost.take(ctx, batch)
		if err != nil {
			return nil
		}
		var writes []client.Write
		var sent []item
		for _, it := range items {
			n, ok := nodes.Get("", it.key.Name)
			if !ok || ready(n) {
				continue
			}
			out := n.DeepCopy()
			now := time.Now()
			for _, c := range s.nodeStatus(s.own[n.Name], now).Conditions {
				replace(&out.Status, c)
			}
			writes = append(writes, client.StatusWrite(out))
			sent = append(sent, it)
		}
		if len(writes) == 0 {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		results, err := s.cfg.Client.CommitQuietly(call, writes...)
		cancel()
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "simulated nodes were not set ready again", "error", err)
		}
		for i, it := range sent {
			if i >= len(results) || results[i].Err != nil && !apierrors.IsNotFound(results[i].Err) {
				lost.add(it.key, time.Now().Add(time.Second), "")
			}
		}
	}
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func replace(s *corev1.NodeStatus, c corev1.NodeCondition) {
	for i := range s.Conditions {
		if s.Conditions[i].Type == c.Type {
			if s.Conditions[i].Status == c.Status {
				c.LastTransitionTime = s.Conditions[i].LastTransitionTime
			}
			s.Conditions[i] = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}
