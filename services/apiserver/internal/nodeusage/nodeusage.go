// Package nodeusage computes the objects of metrics.k8s.io: what nodes and pods use, as the nodes
// measure it.
//
// Nothing runs while nothing asks. A request asks the nodes that it is about (for a list of pods,
// those that the selected pods run on) through their tunnels, at most parallel of them at a time
// in the whole process. An answer serves all requests of the next keep, a failure those of the
// next retry, so that a node that is down delays one request every few seconds at most; and
// requests that come while a node is being asked wait for that answer.
//
// Answers are partial, as with metrics-server: nodes that do not answer within timeout, pods on
// them, and containers whose CPU rate is not known yet (they started less than 10 s ago) are left
// out. The package must never return the usage of another pod of the same name, or believe a node
// about pods that are not bound to it.
package nodeusage

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

const (
	// keep is how long an answer serves.
	keep = 10 * time.Second
	// retry is how long a node that did not answer is left alone.
	retry = 5 * time.Second
	// timeout bounds one question.
	timeout = 5 * time.Second
	// parallel is how many nodes are asked at a time.
	parallel = 64
	// forget is when the answer of a node that is not asked about any more is dropped.
	forget = time.Minute
)

// State reads nodes and pods; it is implemented by the state that admission reads.
type State interface {
	Get(group, res, namespace, name string) (resource.Object, bool)
	Each(group, res, namespace string, f func(resource.Object) bool)
}

// Config configures a Cache. Ask and State are required.
type Config struct {
	// Ask asks a node for its usage, measured at most maxAge ago.
	Ask   func(ctx context.Context, node string, maxAge time.Duration) (*nodev1.Usage, error)
	State State
	Now   func() time.Time
	Log   *slog.Logger
}

// Cache keeps the nodes' answers for a few seconds.
type Cache struct {
	cfg   Config
	slots chan struct{}

	mu    sync.Mutex
	nodes map[string]*answer
	swept time.Time
}

// answer is a node's answer. Its fields are set before done is closed.
type answer struct {
	done  chan struct{}
	at    time.Time
	usage *nodev1.Usage // nil if the node did not answer
	pods  map[string]*nodev1.PodUsage
}

// New returns a Cache.
func New(cfg Config) *Cache {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Cache{cfg: cfg, slots: make(chan struct{}, parallel), nodes: map[string]*answer{}}
}

// ask returns the answers of nodes, by name. Nodes that did not answer are missing.
func (c *Cache) ask(ctx context.Context, nodes map[string]bool) (map[string]*answer, error) {
	waiting := make(map[string]*answer, len(nodes))
	for name := range nodes {
		waiting[name] = c.begin(ctx, name)
	}
	for name, a := range waiting {
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if a.usage == nil {
			delete(waiting, name)
		}
	}
	return waiting, nil
}

// begin returns the answer of a node that is young enough, or one that has yet to come.
func (c *Cache) begin(ctx context.Context, node string) *answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	if now.Sub(c.swept) > forget {
		c.sweep(now)
	}
	if a := c.nodes[node]; a != nil {
		select {
		case <-a.done:
			if age := now.Sub(a.at); age < retry || a.usage != nil && age < keep {
				return a
			}
		default:
			return a
		}
	}
	a := &answer{done: make(chan struct{})}
	c.nodes[node] = a
	// The answer serves other requests too: it does not end with this one.
	go c.fetch(context.WithoutCancel(ctx), node, a)
	return a
}

// fetch asks a node.
func (c *Cache) fetch(ctx context.Context, node string, a *answer) {
	defer close(a.done)
	c.slots <- struct{}{}
	defer func() { <-c.slots }()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	usage, err := c.cfg.Ask(ctx, node, keep/2)
	a.at = c.cfg.Now()
	if err != nil {
		c.cfg.Log.DebugContext(ctx, "node was not measured", "node", node, "error", err)
		return
	}
	a.usage, a.pods = usage, make(map[string]*nodev1.PodUsage, len(usage.GetPods()))
	for _, p := range usage.GetPods() {
		a.pods[p.GetUid()] = p
	}
}

// sweep drops old answers.
func (c *Cache) sweep(now time.Time) {
	c.swept = now
	for node, a := range c.nodes {
		select {
		case <-a.done:
			if now.Sub(a.at) > forget {
				delete(c.nodes, node)
			}
		default:
		}
	}
}

// Nodes is the source of NodeMetrics, and Pods that of PodMetrics.
type (
	Nodes struct{ *Cache }
	Pods  struct{ *Cache }
)

// Get implements resource.Source.
func (s Nodes) Get(ctx context.Context, _, name string) (resource.Object, error) {
	if obj, ok := s.cfg.State.Get("", "nodes", "", name); ok {
		found, err := s.metrics(ctx, map[string]resource.Object{name: obj})
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			return found[0], nil
		}
		return nil, apierrors.NewNotFound(metricsv1beta1.Resource("nodemetrics"), name)
	}
	return nil, apierrors.NewNotFound(corev1.Resource("nodes"), name)
}

// List implements resource.Source.
func (s Nodes) List(ctx context.Context, _ string, selector labels.Selector) ([]resource.Object, error) {
	nodes := map[string]resource.Object{}
	s.cfg.State.Each("", "nodes", "", func(o resource.Object) bool {
		if selector.Matches(labels.Set(o.GetLabels())) {
			nodes[o.GetName()] = o
		}
		return true
	})
	return s.metrics(ctx, nodes)
}

func (s Nodes) metrics(ctx context.Context, nodes map[string]resource.Object) ([]resource.Object, error) {
	asked := make(map[string]bool, len(nodes))
	for name := range nodes {
		asked[name] = true
	}
	answers, err := s.ask(ctx, asked)
	if err != nil {
		return nil, err
	}
	var out []resource.Object
	for name, a := range answers {
		m := a.usage.GetNode()
		if m.GetWindowNano() <= 0 {
			continue
		}
		out = append(out, &metricsv1beta1.NodeMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: nodes[name].GetLabels(), CreationTimestamp: metav1.NewTime(s.cfg.Now())},
			Timestamp:  timestamp(m), Window: window(m), Usage: list(m),
		})
	}
	return out, nil
}

// Get implements resource.Source.
func (s Pods) Get(ctx context.Context, namespace, name string) (resource.Object, error) {
	obj, ok := s.cfg.State.Get("", "pods", namespace, name)
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("pods"), namespace+"/"+name)
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, apierrors.NewInternalError(fmt.Errorf("%T is no pod", obj))
	}
	found, err := s.metrics(ctx, []*corev1.Pod{pod})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, apierrors.NewNotFound(metricsv1beta1.Resource("podmetrics"), namespace+"/"+name)
	}
	return found[0], nil
}

// List implements resource.Source.
func (s Pods) List(ctx context.Context, namespace string, selector labels.Selector) ([]resource.Object, error) {
	var pods []*corev1.Pod
	s.cfg.State.Each("", "pods", namespace, func(o resource.Object) bool {
		if p, ok := o.(*corev1.Pod); ok && selector.Matches(labels.Set(p.Labels)) {
			pods = append(pods, p)
		}
		return true
	})
	return s.metrics(ctx, pods)
}

func (s Pods) metrics(ctx context.Context, pods []*corev1.Pod) ([]resource.Object, error) {
	asked := map[string]bool{}
	for _, p := range pods {
		if p.Spec.NodeName != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			asked[p.Spec.NodeName] = true
		}
	}
	answers, err := s.ask(ctx, asked)
	if err != nil {
		return nil, err
	}
	var out []resource.Object
	for _, p := range pods {
		a := answers[p.Spec.NodeName]
		if a == nil {
			continue
		}
		if m := podMetrics(p, a.pod(p), s.cfg.Now()); m != nil {
			out = append(out, m)
		}
	}
	return out, nil
}

// pod returns the usage of a pod, or nil. A node measures a static pod under the UID that the
// pod's mirror names; the name must be the mirror's, so that no pod shows the usage of another by
// claiming to be its mirror.
func (a *answer) pod(p *corev1.Pod) *nodev1.PodUsage {
	uid, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
	if !mirror {
		return a.pods[string(p.UID)]
	}
	if u := a.pods[uid]; u.GetNamespace() == p.Namespace && u.GetName() == p.Name {
		return u
	}
	return nil
}

// podMetrics returns nil if the usage of one of the containers is not known.
func podMetrics(p *corev1.Pod, u *nodev1.PodUsage, now time.Time) resource.Object {
	if len(u.GetContainers()) == 0 {
		return nil
	}
	out := &metricsv1beta1.PodMetrics{ObjectMeta: metav1.ObjectMeta{
		Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, CreationTimestamp: metav1.NewTime(now),
	}}
	for i, c := range u.GetContainers() {
		m := c.GetUsage()
		if m.GetWindowNano() <= 0 {
			return nil
		}
		if i == 0 || timestamp(m).Time.Before(out.Timestamp.Time) {
			out.Timestamp, out.Window = timestamp(m), window(m)
		}
		out.Containers = append(out.Containers, metricsv1beta1.ContainerMetrics{Name: c.GetName(), Usage: list(m)})
	}
	return out
}

func timestamp(m *nodev1.Measurement) metav1.Time {
	return metav1.NewTime(time.Unix(0, m.GetTimeUnixNano()))
}

func window(m *nodev1.Measurement) metav1.Duration {
	return metav1.Duration{Duration: time.Duration(m.GetWindowNano()).Truncate(time.Millisecond)}
}

// list returns quantities in the units of metrics-server: nanocores and bytes.
func list(m *nodev1.Measurement) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *kresource.NewScaledQuantity(int64(min(m.GetCpuNanoCores(), 1<<62)), kresource.Nano),
		corev1.ResourceMemory: *kresource.NewQuantity(int64(min(m.GetMemoryBytes(), 1<<62)), kresource.BinarySI),
	}
}
