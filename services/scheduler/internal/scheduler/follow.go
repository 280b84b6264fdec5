package scheduler

import (
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/proto/client"
	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// follow subscribes to the caches.
func (s *Scheduler) follow() {
	c := s.cfg.Caches
	c.Nodes.Subscribe(s.onNode)
	c.Namespaces.Subscribe(s.onNamespace)
	c.Services.Subscribe(func(client.Event[*corev1.Service]) { s.selectorsChanged() })
	c.ReplicaSets.Subscribe(func(ev client.Event[*appsv1.ReplicaSet]) {
		if ev.Type != client.Modified || ev.Old == nil || !equality.Semantic.DeepEqual(ev.Old.Spec.Selector, ev.Object.Spec.Selector) {
			s.selectorsChanged()
		}
	})
	c.Claims.Subscribe(func(client.Event[*corev1.PersistentVolumeClaim]) { s.volumesChanged() })
	c.Volumes.Subscribe(func(client.Event[*corev1.PersistentVolume]) { s.volumesChanged() })
	c.StorageClasses.Subscribe(func(client.Event[*storagev1.StorageClass]) { s.volumesChanged() })
	c.Pods.Subscribe(s.onPod)
}

func (s *Scheduler) selectorsChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.env.Selectors++
}

func (s *Scheduler) volumesChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look()
	s.happened(&plugin.Event{Volumes: true})
}

// happened wakes the pods that an event may help.
func (s *Scheduler) happened(ev *plugin.Event) {
	s.queue.Wake(func(p *state.Pod, plugins []string) bool { return plugin.Helps(s.env, p, plugins, ev) })
	s.poke()
}

func (s *Scheduler) onNode(ev client.Event[*corev1.Node]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ev.Type == client.Deleted {
		n := s.env.Node(ev.Object.Name)
		if n == nil {
			return
		}
		s.env.RemoveNode(ev.Object.Name)
		s.happened(&plugin.Event{Node: n, What: state.NodeRemoved})
		return
	}
	if what := s.env.SetNode(ev.Object); what != 0 {
		s.happened(&plugin.Event{Node: s.env.Node(ev.Object.Name), What: what})
	}
}

func (s *Scheduler) onNamespace(ev client.Event[*corev1.Namespace]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ev.Type == client.Deleted {
		s.env.SetNamespace(ev.Object.Name, nil)
		return
	}
	set := labels.Set(ev.Object.Labels)
	if set == nil {
		set = labels.Set{}
	}
	if s.env.SetNamespace(ev.Object.Name, set) {
		s.happened(&plugin.Event{Namespaces: true})
	}
}

func (s *Scheduler) onPod(ev client.Event[*corev1.Pod]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := ev.Object
	key := state.Key{Namespace: o.Namespace, Name: o.Name}
	switch {
	case ev.Type == client.Deleted || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed:
		s.gone(key)
	case o.Spec.NodeName != "":
		s.placed(key, o)
	default:
		s.pending(key, ev)
	}
}

// gone removes a pod that ended or was deleted.
func (s *Scheduler) gone(key state.Key) {
	s.queue.Delete(key)
	delete(s.reports, key)
	delete(s.evicting, key)
	if q := s.env.Withdraw(key); q != nil {
		s.happened(&plugin.Event{Went: q})
	}
	if f := s.flights[key]; f != nil {
		s.land(key, f)
	}
	if p := s.env.RemovePod(key); p != nil {
		s.happened(&plugin.Event{Went: p})
	}
}

// placed adds or updates a pod that is on a node.
func (s *Scheduler) placed(key state.Key, o *corev1.Pod) {
	s.queue.Delete(key)
	delete(s.reports, key)
	if q := s.env.Withdraw(key); q != nil && q.Node != o.Spec.NodeName {
		s.happened(&plugin.Event{Went: q})
	}
	if f := s.flights[key]; f != nil {
		s.land(key, f)
	}
	p := state.NewPod(o)
	if p.Terminating || s.evicting[key] != p.UID {
		delete(s.evicting, key)
	}
	old := s.env.Pod(key)
	if old != nil && sameToOthers(old, p) {
		old.Started = p.Started
		return
	}
	s.env.SetPod(p)
	if old != nil && old.Node != p.Node {
		s.happened(&plugin.Event{Went: old})
	}
	ev := &plugin.Event{Came: p}
	if old != nil {
		ev.Went = old
	}
	s.happened(ev)
}

// sameToOthers reports whether two states of a pod on a node are equivalent for other
// pods.
func sameToOthers(a, b *state.Pod) bool {
	return a.UID == b.UID && a.Node == b.Node && a.Terminating == b.Terminating && a.Preempted == b.Preempted && maps.Equal(a.Labels, b.Labels) &&
		a.ScoreCPU == b.ScoreCPU && a.ScoreMemory == b.ScoreMemory && equality.Semantic.DeepEqual(a.Requests, b.Requests)
}

// pending adds or updates a pod without a node.
func (s *Scheduler) pending(key state.Key, ev client.Event[*corev1.Pod]) {
	o := ev.Object
	if f := s.flights[key]; f != nil {
		if f.item.Pod.UID == o.UID {
			return // its binding is under way, or the news of it
		}
		s.land(key, f)
		s.env.RemovePod(key)
	} else if p := s.env.RemovePod(key); p != nil { // another of that name was on a node
		s.happened(&plugin.Event{Went: p})
	}
	if o.Spec.SchedulerName != s.cfg.Name || o.DeletionTimestamp != nil {
		s.queue.Delete(key)
		if q := s.env.Withdraw(key); q != nil {
			s.happened(&plugin.Event{Went: q})
		}
		return
	}
	s.followNomination(ev.Old, o)
	changed := true
	traceparent := ev.Traceparent
	if it, ok := s.queue.Get(key); ok && it.Pod.UID == o.UID {
		changed = differs(it.Pod.Object, o)
		traceparent = it.Traceparent
	}
	s.queue.Add(state.NewPod(o), traceparent, changed)
	s.poke()
}

// differs reports whether a pending pod changed in something that plugins read.
func differs(a, b *corev1.Pod) bool {
	return !maps.Equal(a.Labels, b.Labels) || !equality.Semantic.DeepEqual(&a.Spec, &b.Spec)
}
