package podautoscaler

import (
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// History is what an autoscaler recommended and did. It is kept in memory: after a change of
// the leader, the first recommendation is the present number, as in Kubernetes.
type History struct {
	// Recommendations are the numbers that the metrics demanded, before limits.
	Recommendations []Recommendation
	// Changes are the rescales within the longest period of a policy.
	Changes []Change
}

// Recommendation is a number of replicas that metrics demanded at a time.
type Recommendation struct {
	At       time.Time
	Replicas int32
}

// Change is a rescale: By is positive if replicas were added.
type Change struct {
	At time.Time
	By int32
}

// maxWindow is the longest stabilization window and the longest period of a policy that
// validation accepts.
const maxWindow = time.Hour

func (h History) clone() History {
	return History{Recommendations: slices.Clone(h.Recommendations), Changes: slices.Clone(h.Changes)}
}

// begin records the present number if there is no recommendation yet, so that a new autoscaler
// does not scale down before its stabilization window has passed.
func (h *History) begin(current int32, now time.Time) {
	if len(h.Recommendations) == 0 {
		h.recommend(current, now)
	}
}

// recommend records a recommendation and forgets those that are too old for any window.
func (h *History) recommend(replicas int32, now time.Time) {
	h.Recommendations = slices.DeleteFunc(h.Recommendations, func(r Recommendation) bool { return now.Sub(r.At) > maxWindow })
	h.Recommendations = append(h.Recommendations, Recommendation{now, replicas})
}

// rescaled records a rescale, if there are policies that count it.
func (h *History) rescaled(behavior *autoscalingv2.HorizontalPodAutoscalerBehavior, from, to int32, now time.Time) {
	h.Changes = slices.DeleteFunc(h.Changes, func(c Change) bool { return now.Sub(c.At) > maxWindow })
	if behavior != nil {
		h.Changes = append(h.Changes, Change{now, to - from})
	}
}

// since returns the largest and smallest recommendation of a window, with proposed among them.
func (h *History) since(from time.Time, proposed int32) (lowest, highest int32) {
	lowest, highest = proposed, proposed
	for _, r := range h.Recommendations {
		if r.At.After(from) {
			lowest, highest = min(lowest, r.Replicas), max(highest, r.Replicas)
		}
	}
	return lowest, highest
}

// before returns the number of replicas at the beginning of a period that ends now with current.
func (h *History) before(current int32, from time.Time) int32 {
	for _, c := range h.Changes {
		if c.At.After(from) {
			current -= c.By
		}
	}
	return current
}
