package daemonset

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// bounds returns maxSurge and maxUnavailable as numbers of nodes. Percentages are
// rounded up. At least one of the two is positive; validation rejects sets with both.
func (p *planner) bounds() (surge, unavailable int) {
	u := p.ds.Spec.UpdateStrategy.RollingUpdate
	if u == nil {
		return 0, 1
	}
	desired := 0
	for _, l := range p.places {
		if l.fit.run {
			desired++
		}
	}
	scale := func(v *intstr.IntOrString, otherwise int) int {
		if v == nil {
			return otherwise
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(v, desired, true)
		if err != nil {
			return otherwise // validation rejects such a value
		}
		return n
	}
	surge, unavailable = scale(u.MaxSurge, 0), scale(u.MaxUnavailable, 1)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// roll replaces pods of older templates: unavailable pods first, then as many
// available ones as the bounds allow.
func (p *planner) roll() {
	for _, l := range p.places {
		if l.fit.run {
			p.removeOutdatedFailed(l)
		}
	}
	if surge, unavailable := p.bounds(); surge > 0 {
		p.rollAhead(surge)
	} else {
		p.rollInPlace(unavailable)
	}
}

// removeOutdatedFailed deletes a node's failed pods of older templates. They do not
// wait for the backoff of failed pods: the current template may fix the failure.
func (p *planner) removeOutdatedFailed(l *place) {
	for _, pod := range l.pods {
		if pod.Status.Phase == corev1.PodFailed && !p.fresh(pod) {
			p.remove(pod)
		}
	}
}

// rollInPlace deletes old pods. Each node gets a new pod once its old one is gone. As in
// Kubernetes, old pods that may only stay on their node are deleted too, within the same
// limit, although nothing replaces them there.
func (p *planner) rollInPlace(limit int) {
	var candidates []*corev1.Pod
	unavailable := 0
	for _, l := range p.places {
		if !l.fit.keep {
			continue
		}
		fresh, old := p.staying(l)
		switch {
		case len(fresh)+len(old) == 0 && !l.fit.run:
		case len(fresh)+len(old) == 0:
			unavailable++ // the pod is yet to be created, or is terminating or failed
		case len(fresh) > 0:
			if !p.available(fresh[0]) {
				unavailable++
			}
		case !p.available(old[0]):
			unavailable++
			p.remove(old[0])
		default:
			candidates = append(candidates, old[0])
		}
	}
	for _, pod := range candidates {
		if unavailable >= limit {
			return
		}
		unavailable++
		p.remove(pod)
	}
}

// rollAhead creates new pods next to old ones. prune deletes an old pod once the new
// one is available.
//
// Old pods that may only stay on their node, because it has a NoSchedule taint that they
// do not tolerate, get no successor there. As in Kubernetes, such a pod is deleted at once
// if it is unavailable, and otherwise only while more pods are available than the set
// wants: with maxSurge, the set's owner expects that a move of the pods from some nodes to
// others does not reduce the available ones.
func (p *planner) rollAhead(surge int) {
	var candidates []*place
	var leaving []*corev1.Pod
	desired, available := 0, 0
	for _, l := range p.places {
		if !l.fit.keep {
			continue
		}
		if l.fit.run {
			desired++
		}
		fresh, old := p.staying(l)
		if either := append(slices.Clone(old), fresh...); len(either) > 0 && p.available(either[0]) {
			available++
		}
		if len(old) == 0 {
			continue
		}
		switch {
		case !l.fit.run && len(fresh) == 0 && !p.available(old[0]):
			p.remove(old[0])
		case !l.fit.run && len(fresh) == 0:
			leaving = append(leaving, old[0])
		case len(fresh) > 0:
			surge--
		case !p.available(old[0]):
			// The old pod is unavailable, so replacing it does not count against maxSurge.
			l.create = !p.ending(l)
		default:
			candidates = append(candidates, l)
		}
	}
	for _, pod := range leaving[:min(max(available-desired, 0), len(leaving))] {
		p.remove(pod)
	}
	for _, l := range candidates {
		if surge <= 0 {
			return
		}
		if p.ending(l) {
			continue
		}
		surge--
		l.create = true
	}
}

// staying returns the pods of a place that are neither finished nor being deleted nor
// about to be deleted by the plan: those of the current template, and older ones.
func (p *planner) staying(l *place) (fresh, old []*corev1.Pod) {
	for _, pod := range l.pods {
		if pod.DeletionTimestamp != nil || p.deleting[pod] || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		if p.fresh(pod) {
			fresh = append(fresh, pod)
		} else {
			old = append(old, pod)
		}
	}
	return fresh, old
}

// ending reports whether a pod of the current template on the place is being deleted,
// or will be deleted by the plan.
func (p *planner) ending(l *place) bool {
	for _, pod := range l.pods {
		if p.fresh(pod) && (pod.DeletionTimestamp != nil || p.deleting[pod]) {
			return true
		}
	}
	return false
}
