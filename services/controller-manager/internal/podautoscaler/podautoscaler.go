// Package podautoscaler sets the number of replicas of what HorizontalPodAutoscalers target, by
// the usage of the target's pods, as Kubernetes 1.37 does.
//
// Each autoscaler is evaluated every 15 s, and when its spec changes. An evaluation reads the
// target's scale, the pods that it selects and their usage (metrics.k8s.io), each once, and
// Plan decides. Without autoscalers, nothing is read, and pods are not cached for them.
//
// Invariants:
//
//   - A rescale is conditional on the scale that the decision was made on.
//   - Nothing is scaled on a guess: if no metric is known, or some are not and the others
//     would scale down, the number stays.
//   - Two autoscalers that select a common pod scale nothing.
//   - What is remembered of an autoscaler (History) is bounded in time, kept in memory, and
//     forgotten with it or with the leadership. Then the present number counts as the first
//     recommendation, so that a new leader does not scale down before the stabilization
//     window has passed.
//
// Metrics of pods, objects and external systems need the APIs custom.metrics.k8s.io and
// external.metrics.k8s.io, which nothing serves yet: their conditions say so, in Kubernetes'
// words.
package podautoscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// attempts is how often a scale is set whose object changes meanwhile.
const attempts = 5

type reconciler struct {
	*cluster.Cluster

	options     Options
	autoscalers *client.Cache[*autoscalingv2.HorizontalPodAutoscaler]
	scales      map[schema.GroupKind]scales
	now         func() time.Time

	mu     sync.Mutex
	memory map[controller.Key]*memory
}

// memory is what is remembered of an autoscaler.
type memory struct {
	history History
	// selector is what its target selected last; nil if that is not known.
	selector labels.Selector
}

// scales reads and writes the scales of a kind.
type scales struct {
	get func(ctx context.Context, namespace, name string) (*autoscalingv1.Scale, error)
	set func(ctx context.Context, scale *autoscalingv1.Scale, opts ...client.WriteOption) (*autoscalingv1.Scale, error)
}

func scalesOf[T client.Object](c *client.Client) scales {
	r := client.For[T](c)
	return scales{get: r.GetScale, set: r.UpdateScale}
}

// New returns the controller.
func New(s *cluster.Cluster, o Options) controller.Controller { return build(s, o, time.Now) }

func build(s *cluster.Cluster, o Options, now func() time.Time) controller.Controller {
	r := &reconciler{
		Cluster: s, options: o, now: now, memory: map[controller.Key]*memory{},
		autoscalers: cluster.Of[*autoscalingv2.HorizontalPodAutoscaler](s),
		scales: map[schema.GroupKind]scales{
			{Group: "apps", Kind: "Deployment"}:  scalesOf[*appsv1.Deployment](s.Client),
			{Group: "apps", Kind: "StatefulSet"}: scalesOf[*appsv1.StatefulSet](s.Client),
			{Group: "apps", Kind: "ReplicaSet"}:  scalesOf[*appsv1.ReplicaSet](s.Client),
			{Kind: "ReplicationController"}:      scalesOf[*corev1.ReplicationController](s.Client),
		},
	}
	return controller.Controller{
		Name: "podautoscaler", Workers: o.Concurrent, Reconcile: r.reconcile,
		Sources: []controller.Source{
			controller.From(r.autoscalers, func(ev client.Event[*autoscalingv2.HorizontalPodAutoscaler]) []controller.Key {
				if ev.Type == client.Modified && ev.Old != nil && ev.Old.UID == ev.Object.UID && ev.Old.Generation == ev.Object.Generation {
					return nil // a status, most likely this controller's
				}
				return []controller.Key{client.KeyOf(ev.Object)}
			}),
		},
	}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	hpa, ok := r.autoscalers.Get(key.Namespace, key.Name)
	if !ok {
		r.forget(key)
		return controller.Result{}, nil
	}
	began := time.Now()
	o := Observation{HPA: hpa, History: r.recall(key), Options: r.options}
	scales, err := r.scalesOf(&hpa.Spec.ScaleTargetRef)
	if err == nil {
		o.Scale, err = scales.get(ctx, hpa.Namespace, hpa.Spec.ScaleTargetRef.Name)
	}
	if err != nil {
		o.ScaleErr = plain(err)
	} else if Needed(hpa, o.Scale.Spec.Replicas) {
		o.Target = r.target(ctx, key, hpa, o.Scale)
	}
	if ctx.Err() != nil {
		return controller.Result{}, ctx.Err()
	}
	o.Now = r.now()
	d := Plan(o)
	var refused error
	if d.Rescale {
		refused = r.rescale(ctx, scales, o.Scale, d.Replicas)
		d.Rescaled(refused, r.now())
	}
	count(&d, refused != nil, time.Since(began))
	if d.Err != nil {
		slog.DebugContext(ctx, "autoscaler computed no replicas from some metrics", "namespace", key.Namespace, "name", key.Name, "error", d.Err)
	}
	r.remember(key, d.History)
	for _, e := range d.Events {
		if e.Warning {
			r.Events.Warning(ctx, hpa, e.Reason, "%s", e.Message)
		} else {
			r.Events.Normal(ctx, hpa, e.Reason, "%s", e.Message)
		}
	}
	if !equality.Semantic.DeepEqual(d.Status, hpa.Status) {
		next := hpa.DeepCopy()
		next.Status = d.Status
		_, err := client.For[*autoscalingv2.HorizontalPodAutoscaler](r.Client).UpdateStatus(ctx, next)
		if err != nil && !apierrors.IsNotFound(err) {
			return controller.Result{}, fmt.Errorf("status of horizontalpodautoscaler %s: %w", key, err)
		}
	}
	return controller.Result{RequeueAfter: r.options.Sync}, nil
}

// plain returns the message of an API error, without what the client added to it.
func plain(err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return errors.New(status.Status().Message)
	}
	return err
}

// scalesOf returns the scales of the kind of a target.
func (r *reconciler) scalesOf(ref *autoscalingv2.CrossVersionObjectReference) (scales, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return scales{}, err
	}
	s, ok := r.scales[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}]
	if !ok {
		return scales{}, fmt.Errorf("no matches for kind %q in group %q", ref.Kind, gv.Group)
	}
	return s, nil
}

// target reads the pods that a scale selects and their usage.
func (r *reconciler) target(ctx context.Context, key controller.Key, hpa *autoscalingv2.HorizontalPodAutoscaler, scale *autoscalingv1.Scale) Target {
	if scale.Status.Selector == "" {
		return Target{Err: errors.New("selector is required"), Event: "SelectorRequired", Reason: "InvalidSelector", Message: "the HPA target's scale is missing a selector"}
	}
	selector, err := labels.Parse(scale.Status.Selector)
	if err != nil {
		err = fmt.Errorf("couldn't convert selector into a corresponding internal selector object: %w", err)
		return Target{Err: err, Event: "InvalidSelector", Reason: "InvalidSelector", Message: err.Error()}
	}
	pods, _, err := client.For[*corev1.Pod](r.Client).List(ctx, client.ListOptions{Namespace: hpa.Namespace, LabelSelector: selector.String()})
	if err != nil {
		return Target{Err: fmt.Errorf("unable to get pods while calculating replica count: %w", plain(err))}
	}
	if rivals := r.rivals(key, selector, pods); len(rivals) > 1 {
		err := fmt.Errorf("pods by selector %s are controlled by more than one HPA (e.g. %v)", scale.Status.Selector, rivals)
		return Target{Err: err, Event: "AmbiguousSelector", Reason: "AmbiguousSelector", Message: err.Error()}
	}
	t := Target{Pods: pods, Values: map[int]Value{}}
	usage := false
	for i := range hpa.Spec.Metrics {
		switch m := &hpa.Spec.Metrics[i]; m.Type {
		case autoscalingv2.ResourceMetricSourceType, autoscalingv2.ContainerResourceMetricSourceType:
			usage = true
		case autoscalingv2.PodsMetricSourceType, autoscalingv2.ObjectMetricSourceType:
			t.Values[i] = Value{Err: errors.New("unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered")}
		case autoscalingv2.ExternalMetricSourceType:
			t.Values[i] = Value{Err: fmt.Errorf("unable to fetch metrics from external metrics API: the server could not find the requested resource (get %s.external.metrics.k8s.io)", m.External.Metric.Name)}
		}
	}
	if usage {
		t.Usage, _, err = client.For[*metricsv1beta1.PodMetrics](r.Client).List(ctx, client.ListOptions{Namespace: hpa.Namespace, LabelSelector: selector.String()})
		if err != nil {
			t.UsageErr = plain(err)
		}
	}
	return t
}

// rescale sets the number of replicas. If the object has changed meanwhile in other ways than
// its number, that is tried again.
func (r *reconciler) rescale(ctx context.Context, s scales, seen *autoscalingv1.Scale, replicas int32) error {
	scale := seen
	for i := 0; ; i++ {
		next := scale.DeepCopy()
		next.Spec.Replicas = replicas
		_, err := s.set(ctx, next)
		if err == nil {
			return nil
		}
		if !apierrors.IsConflict(err) || i == attempts-1 {
			return plain(err)
		}
		if scale, err = s.get(ctx, seen.Namespace, seen.Name); err != nil {
			return plain(err)
		}
		if scale.UID != seen.UID || scale.Spec.Replicas != seen.Spec.Replicas {
			return fmt.Errorf("the number of replicas was changed to %d meanwhile", scale.Spec.Replicas)
		}
	}
}

// recall returns the history of an autoscaler.
func (r *reconciler) recall(key controller.Key) History {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.memory[key]; m != nil {
		return m.history
	}
	return History{}
}

// remember keeps the history of an autoscaler, unless it was deleted meanwhile.
func (r *reconciler) remember(key controller.Key, h History) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.memory[key]
	if m == nil {
		m = &memory{}
		r.memory[key] = m
	}
	m.history = h
}

func (r *reconciler) forget(key controller.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.memory, key)
	desired.DeleteLabelValues(key.Namespace, key.Name)
}

// rivals remembers what an autoscaler selects, and returns two autoscalers that select a common
// one of its pods, if there are any.
func (r *reconciler) rivals(key controller.Key, selector labels.Selector, pods []*corev1.Pod) []controller.Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := r.memory[key]
	if own == nil {
		own = &memory{}
		r.memory[key] = own
	}
	own.selector = selector
	for other, m := range r.memory {
		if other == key || other.Namespace != key.Namespace || m.selector == nil {
			continue
		}
		for _, pod := range pods {
			if m.selector.Matches(labels.Set(pod.Labels)) {
				return []controller.Key{key, other}
			}
		}
	}
	return nil
}
