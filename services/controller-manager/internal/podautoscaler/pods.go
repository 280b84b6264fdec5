package podautoscaler

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// groups sorts the pods of a target by what is known of them.
type groups struct {
	// ready is the number of pods that count, and samples are those of them.
	ready   int
	samples map[string]sample
	// unready pods are not started far enough for their usage to mean something, and missing
	// ones have no sample.
	unready, missing []string
}

// group sorts the pods. Pods that are being deleted or have failed are left out.
func (p *planner) group(samples map[string]sample, name corev1.ResourceName) (groups, error) {
	if len(p.Target.Pods) == 0 {
		return groups{}, errors.New("no pods returned by selector while calculating replica count")
	}
	g := groups{samples: maps.Clone(samples)}
	for _, pod := range p.Target.Pods {
		s, known := samples[pod.Name]
		switch {
		case pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed:
			delete(g.samples, pod.Name)
		case pod.Status.Phase == corev1.PodPending:
			g.unready = append(g.unready, pod.Name)
			delete(g.samples, pod.Name)
		case !known:
			g.missing = append(g.missing, pod.Name)
		case name == corev1.ResourceCPU && p.starting(pod, s):
			g.unready = append(g.unready, pod.Name)
			delete(g.samples, pod.Name)
		default:
			g.ready++
		}
	}
	if len(g.samples) == 0 {
		return g, errors.New("did not receive metrics for targeted pods (pods might be unready)")
	}
	return g, nil
}

// starting reports whether a pod's CPU usage is still that of its start: within the
// initialization period, while it is not ready or the sample's window began before it was;
// later, if it has never been ready.
func (p *planner) starting(pod *corev1.Pod, s sample) bool {
	c := readiness(pod)
	if c == nil || pod.Status.StartTime == nil {
		return true
	}
	start, changed := pod.Status.StartTime.Time, c.LastTransitionTime.Time
	if start.Add(p.Options.CPUInitialization).After(p.Now) {
		return c.Status == corev1.ConditionFalse || s.at.Before(changed.Add(s.window))
	}
	return c.Status == corev1.ConditionFalse && start.Add(p.Options.InitialReadinessDelay).After(changed)
}

func readiness(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == corev1.PodReady {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// readyCount returns the number of pods that run and are ready.
func readyCount(pods []*corev1.Pod) int {
	n := 0
	for _, pod := range pods {
		if c := readiness(pod); pod.Status.Phase == corev1.PodRunning && c != nil && c.Status == corev1.ConditionTrue {
			n++
		}
	}
	return n
}

// average computes the replicas for an average of the samples, which is also returned.
func (p *planner) average(g groups, goal int64) (n int32, average int64, err error) {
	ratio := func(samples map[string]sample) (float64, error) {
		var sum int64
		for _, s := range samples {
			sum = plus(sum, s.value)
		}
		average = sum / int64(len(samples))
		return float64(average) / float64(goal), nil
	}
	first, _ := ratio(g.samples)
	shown := average
	n, err = p.replicas(g, first, ratio, func(string) int64 { return goal })
	return n, shown, err
}

// utilization computes the replicas for a percentage of the requests. It returns the present
// percentage and average as well.
func (p *planner) utilization(g groups, requests map[string]int64, goal int32) (n, percent int32, average int64, err error) {
	ratio := func(samples map[string]sample) (float64, error) {
		var used, requested, count int64
		for name, s := range samples {
			if r, ok := requests[name]; ok {
				used, requested, count = plus(used, s.value), plus(requested, r), count+1
			}
		}
		if requested == 0 {
			return 0, errors.New("no metrics returned matched known pods")
		}
		percent, average = percentage(used, requested), used/count
		return float64(percent) / float64(goal), nil
	}
	first, err := ratio(g.samples)
	if err != nil {
		return 0, 0, 0, err
	}
	shownPercent, shownAverage := percent, average
	n, err = p.replicas(g, first, ratio, func(name string) int64 { return portion(requests[name], max(100, goal)) })
	return n, shownPercent, shownAverage, err
}

// replicas computes the number of replicas from the ratio of usage to its goal. Missing pods
// are taken to use nothing if it would grow, and what full returns if it would shrink; unready
// ones to use nothing if it would grow. If these assumptions change the direction, nothing is
// changed.
func (p *planner) replicas(g groups, first float64, ratio func(map[string]sample) (float64, error), full func(pod string) int64) (int32, error) {
	current := p.Scale.Spec.Replicas
	fillUnready := len(g.unready) > 0 && first > 1
	if !fillUnready && len(g.missing) == 0 {
		if p.tolerated(first) {
			return current, nil
		}
		return saturate(math.Ceil(first * float64(g.ready))), nil
	}
	for _, name := range g.missing {
		switch {
		case first < 1:
			g.samples[name] = sample{value: full(name)}
		case first > 1:
			g.samples[name] = sample{}
		}
	}
	if fillUnready {
		for _, name := range g.unready {
			g.samples[name] = sample{}
		}
	}
	second, err := ratio(g.samples)
	if err != nil {
		return 0, err
	}
	if p.tolerated(second) || first < 1 && second > 1 || first > 1 && second < 1 {
		return current, nil
	}
	n := saturate(math.Ceil(second * float64(len(g.samples))))
	if second < 1 && n > current || second > 1 && n < current {
		return current, nil
	}
	return n, nil
}

// plus returns a + b, or the largest number if that is larger. Both must not be negative.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// percentage returns used as a percentage of requested, rounded down. Neither may be negative,
// and requested not 0.
func percentage(used, requested int64) int32 {
	if used <= math.MaxInt64/100 {
		return int32(min(used*100/requested, math.MaxInt32)) //nolint:gosec // bounded.
	}
	return saturate(float64(used) / float64(requested) * 100)
}

// portion returns percent hundredths of n, or the largest number if that is larger.
func portion(n int64, percent int32) int64 {
	high, low := bits.Mul64(uint64(n), uint64(percent)) //nolint:gosec // neither is negative.
	if high >= 100 {
		return math.MaxInt64
	}
	q, _ := bits.Div64(high, low, 100)
	return int64(min(q, math.MaxInt64)) //nolint:gosec // bounded.
}

// requestsOf returns what each pod, or one container of each, requests of a resource, in
// thousandths.
func requestsOf(pods []*corev1.Pod, container string, name corev1.ResourceName) (map[string]int64, error) {
	out := make(map[string]int64, len(pods))
	for _, pod := range pods {
		if container == "" && resourcehelper.IsPodLevelRequestsSet(pod) {
			q, ok := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})[name]
			if !ok {
				return nil, fmt.Errorf("missing pod-level request for %s in Pod %s", name, pod.Name)
			}
			out[pod.Name] = q.MilliValue()
			continue
		}
		found := false
		for _, c := range longLived(pod) {
			if container != "" && container != c.Name {
				continue
			}
			q, ok := c.Resources.Requests[name]
			if !ok {
				return nil, fmt.Errorf("missing request for %s in container %s of Pod %s", name, c.Name, pod.Name)
			}
			out[pod.Name] = plus(out[pod.Name], q.MilliValue())
			found = true
		}
		if container != "" && !found {
			return nil, fmt.Errorf("container %s not found in Pod %s", container, pod.Name)
		}
	}
	return out, nil
}

// longLived returns a pod's containers and sidecars.
func longLived(pod *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return out
}
