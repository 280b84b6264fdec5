package daemonset

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// bounds are maxSurge and maxUnavailable as numbers of nodes; percentages are
// rounded up. At least one of them is positive, and validation allows only one.
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
			return otherwise // validation keeps such a value out.
		}
		return n
	}
	surge, unavailable = scale(u.MaxSurge, 0), scale(u.MaxUnavailable, 1)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// roll replaces pods of older templates: first those that serve nobody, then as
// many of the others as the bounds allow.
func (p *planner) roll() {
	if surge, unavailable := p.bounds(); surge > 0 {
		p.rollAhead(surge)
	} else {
		p.rollInPlace(unavailable)
	}
}

// rollInPlace deletes old pods; the nodes get new ones when they have ended.
func (p *planner) rollInPlace(limit int) {
	var candidates []*corev1.Pod
	unavailable := 0
	for _, l := range p.places {
		if !l.fit.run {
			continue // what stays there could not be replaced
		}
		fresh, old := p.staying(l)
		switch {
		case len(fresh)+len(old) == 0:
			unavailable++ // a pod is on its way, or ends
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

// rollAhead creates new pods beside old ones, which prune deletes once the new ones
// are available.
func (p *planner) rollAhead(surge int) {
	var candidates []*place
	for _, l := range p.places {
		if !l.fit.run {
			continue
		}
		fresh, old := p.staying(l)
		if len(old) == 0 {
			continue
		}
		switch {
		case len(fresh) > 0:
			surge--
		case !p.available(old[0]):
			// It serves nobody, so that another beside it takes nothing from the surge.
			l.create = !p.ending(l)
		default:
			candidates = append(candidates, l)
		}
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

// staying are a place's pods that run and go on running, by template.
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

// ending reports whether a pod of the present template is ending there.
func (p *planner) ending(l *place) bool {
	for _, pod := range l.pods {
		if p.fresh(pod) && (pod.DeletionTimestamp != nil || p.deleting[pod]) {
			return true
		}
	}
	return false
}
