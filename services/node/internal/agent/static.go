package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
)

// Source is where static pods come from: pods that run on the node without having been
// bound to it through the API.
type Source interface {
	// Run calls set with all pods of the source: once at first, and then whenever they have
	// changed, until ctx ends. They are nil if they are not known yet. A pod that has changed
	// has another UID, which satisfies pod.IsStaticUID.
	Run(ctx context.Context, set func([]*corev1.Pod)) error
}

// statics are the static pods and their mirrors.
//
// A static pod has a worker like any other, under its own UID, and runs without the API.
// While the API answers, its mirror exists there: a pod with the same name and another UID,
// to which the worker's status is written. A mirror has no worker. The mirror of a changed
// or removed manifest is deleted when nothing is left of the pod that it shows, and so is a
// mirror that somebody is deleting, after which it is created again.
//
// A static pod of an earlier agent that is not wanted any more ends as soon as the source has
// been read, without the API: its successor has its name, ports and files. Until the source
// has been read, the static pods and mirrors of an earlier agent are left as they are.
//
// The fields are guarded by the agent's lock, except the channels.
type statics struct {
	// wanted are the pods of the source, by namespace and name, and running those that have
	// a worker, by UID.
	wanted  map[string]*corev1.Pod
	running map[types.UID]*corev1.Pod
	// ending are the running ones that are being ended.
	ending map[types.UID]bool
	// known is true once the source has been read.
	known bool
	// first is closed when the source has answered once; isFirst is true until then.
	first   chan struct{}
	isFirst bool
	// changed wakes the loop that starts and ends static pods, and mirrors the one that
	// keeps their mirrors.
	changed, mirrors chan struct{}
}

func newStatics() statics {
	return statics{
		wanted: map[string]*corev1.Pod{}, running: map[types.UID]*corev1.Pod{}, ending: map[types.UID]bool{}, first: make(chan struct{}), isFirst: true,
		changed: make(chan struct{}, 1), mirrors: make(chan struct{}, 1),
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// setStatic replaces the wanted static pods, unless they are nil.
func (a *Agent) setStatic(pods []*corev1.Pod) {
	a.mu.Lock()
	if pods != nil {
		a.static.known = true
		a.static.wanted = map[string]*corev1.Pod{}
	}
	for _, p := range pods {
		a.static.wanted[pod.Key(p)] = p
	}
	a.mu.Unlock()
	nudge(a.static.changed)
}

// runStatic starts and ends static pods as the source says. A pod whose manifest has changed
// is ended before its successor, which has its name and ports, is started. seen is what the
// runtime had when the agent started.
func (a *Agent) runStatic(ctx context.Context, seen map[string]cri.Seen) error {
	adopted := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.static.changed:
		}
		if !adopted {
			adopted = a.adoptStatic(seen)
		}
		start, end := a.planStatic()
		for _, p := range end {
			a.deliver(p.UID, func(w *worker) { w.remove(p, "") })
		}
		for _, p := range start {
			a.log.InfoContext(ctx, "static pod starts", "pod", pod.Key(p), "pod_uid", p.UID)
			a.deliver(p.UID, func(w *worker) { w.update(p, nil, "") })
		}
		nudge(a.static.mirrors)
		if a.static.isFirst {
			a.static.isFirst = false
			close(a.static.first)
		}
	}
}

// adoptStatic ends the static pods of an earlier agent that are not wanted, and counts them as
// running until nothing is left of them. It reports whether the source has been read.
func (a *Agent) adoptStatic(seen map[string]cri.Seen) bool {
	a.mu.Lock()
	if !a.static.known {
		a.mu.Unlock()
		return false
	}
	for _, s := range seen {
		uid := types.UID(s.PodUID)
		if !s.Sandbox || !pod.IsStaticUID(uid) || a.workers[uid] != nil || a.wantsStatic(uid) {
			continue
		}
		p := &corev1.Pod{}
		p.Namespace, p.Name, p.UID = s.PodNamespace, s.PodName, uid
		a.static.running[uid], a.static.ending[uid] = p, true
	}
	a.mu.Unlock()
	for _, uid := range a.remains(seen) {
		if pod.IsStaticUID(uid) {
			a.adoptPod(uid)
		}
	}
	return true
}

// wantsStatic reports whether a static pod is wanted. The lock is held.
func (a *Agent) wantsStatic(uid types.UID) bool {
	for _, p := range a.static.wanted {
		if p.UID == uid {
			return true
		}
	}
	return false
}

// planStatic returns the static pods to start and to end now, and counts the former as
// running.
func (a *Agent) planStatic() (start, end []*corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	taken := map[string]bool{}
	for uid, p := range a.static.running {
		switch {
		case a.static.wanted[pod.Key(p)] != nil && a.static.wanted[pod.Key(p)].UID == uid:
		case a.workers[uid] == nil:
			delete(a.static.running, uid)
			delete(a.static.ending, uid)
			continue
		case !a.static.ending[uid]:
			a.static.ending[uid] = true
			end = append(end, p)
		}
		taken[pod.Key(p)] = true
	}
	for key, p := range a.static.wanted {
		if !taken[key] {
			a.static.running[p.UID] = p
			start = append(start, p)
		}
	}
	return start, end
}

// staticPod returns the static pod that a mirror shows, or nil.
func (a *Agent) staticPod(mirror *corev1.Pod) *corev1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.static.running[types.UID(mirror.Annotations[corev1.MirrorPodAnnotationKey])]
}

// mirrorOf returns the mirror of a static pod, or nil if the API has none.
func (a *Agent) mirrorOf(p *corev1.Pod) *corev1.Pod {
	m, ok := a.pods.Get(p.Namespace, p.Name)
	if !ok || m.Annotations[corev1.MirrorPodAnnotationKey] != string(p.UID) || m.DeletionTimestamp != nil {
		return nil
	}
	return m
}

// onMirror handles one event of the pod watch about a mirror.
func (a *Agent) onMirror(ev client.Event[*corev1.Pod]) {
	if ev.Type == client.Deleted {
		a.writer.Forget(ev.Object.UID)
	}
	nudge(a.static.mirrors)
	a.wake(types.UID(ev.Object.Annotations[corev1.MirrorPodAnnotationKey]))
}

const (
	mirrorRetryFirst = 200 * time.Millisecond
	mirrorRetryMost  = 10 * time.Second
)

// keepMirrors creates and deletes mirrors until ctx ends.
func (a *Agent) keepMirrors(ctx context.Context) error {
	select {
	case <-a.pods.Synced():
	case <-ctx.Done():
		return nil
	}
	if a.cfg.Static != nil {
		select {
		case <-a.static.first:
		case <-ctx.Done():
			return nil
		}
	}
	var again retry
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-a.static.mirrors:
			if time.Until(again.until) > 0 {
				continue // the timer is set
			}
		}
		if err := a.syncMirrors(ctx); err != nil && ctx.Err() == nil {
			again.fail(mirrorRetryFirst, mirrorRetryMost)
			a.log.WarnContext(ctx, "mirror pods were not written", "error", err)
			timer.Reset(again.delay)
			continue
		}
		again.ok()
	}
}

// syncMirrors makes the mirrors in the API those of the static pods, once these are known.
func (a *Agent) syncMirrors(ctx context.Context) error {
	a.mu.Lock()
	known := a.static.known || a.cfg.Static == nil
	a.mu.Unlock()
	if !known {
		return nil
	}
	pods := client.For[*corev1.Pod](a.cfg.Client)
	for _, m := range a.pods.List() {
		if !pod.IsMirror(m) || a.staticPod(m) != nil && m.DeletionTimestamp == nil && !a.outlived(m) {
			continue
		}
		err := pods.Delete(ctx, m.Namespace, m.Name, client.Grace(0), client.UID(m.UID))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return err
		}
	}
	a.mu.Lock()
	wanted := make([]*corev1.Pod, 0, len(a.static.wanted))
	for _, p := range a.static.wanted {
		if a.static.running[p.UID] != nil {
			wanted = append(wanted, p)
		}
	}
	a.mu.Unlock()
	for _, p := range wanted {
		if _, exists := a.pods.Get(p.Namespace, p.Name); exists {
			continue // its mirror, or one that is being deleted: the watch will tell
		}
		m := a.mirror(p)
		if m == nil {
			return errNoNode
		}
		if _, err := pods.Create(ctx, m); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// outlived reports whether a mirror shows that a pod has ended that runs again, after the
// machine was restarted. A pod's phase never leaves Succeeded and Failed, so that such a
// mirror is created anew.
func (a *Agent) outlived(m *corev1.Pod) bool {
	a.mu.Lock()
	w := a.workers[types.UID(m.Annotations[corev1.MirrorPodAnnotationKey])]
	a.mu.Unlock()
	if w == nil || !pod.Terminal(m) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest != nil && w.latest.Phase == corev1.PodRunning
}

// errNoNode means that the node's own object, which owns the mirrors, is not known yet.
var errNoNode = apierrors.NewServiceUnavailable("the node's own object is not known yet")

// mirror returns the object that shows a static pod in the API, or nil while the node's own
// object is unknown.
func (a *Agent) mirror(p *corev1.Pod) *corev1.Pod {
	var self *corev1.Node
	if a.cfg.Self != nil {
		self = a.cfg.Self()
	}
	if self == nil || self.UID == "" {
		return nil
	}
	m := p.DeepCopy()
	m.UID, m.ResourceVersion = "", ""
	m.Annotations[corev1.MirrorPodAnnotationKey] = p.Annotations[pod.AnnotationHash]
	controller := true
	m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: self.Name, UID: self.UID, Controller: &controller}}
	return m
}

// Find returns the pod of this node with the given name and, unless it is "", the given UID
// in the API. For a mirror it returns the static pod with the mirror's status.
func (a *Agent) Find(namespace, name, uid string) (*corev1.Pod, bool) {
	p, ok := a.pods.Get(namespace, name)
	if !ok || uid != "" && string(p.UID) != uid {
		return nil, false
	}
	if !pod.IsMirror(p) {
		return p, true
	}
	s := a.staticPod(p)
	if s == nil {
		return nil, false
	}
	shown := *s
	shown.Status = p.Status
	return &shown, true
}
