package deployment

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
)

const (
	desiredAnnotation = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation     = "deployment.kubernetes.io/max-replicas"
)

// annotateSize records on a set the size of the deployment that its replicas are for.
func (r *rollout) annotateSize(rs *appsv1.ReplicaSet) {
	surge, _ := r.bounds()
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	rs.Annotations[desiredAnnotation] = strconv.Itoa(int(r.desired()))
	rs.Annotations[maxAnnotation] = strconv.Itoa(int(r.desired() + surge))
}

// noted returns the value of an annotation that annotateSize wrote.
func noted(rs *appsv1.ReplicaSet, annotation string) (int32, bool) {
	v, err := strconv.ParseInt(rs.Annotations[annotation], 10, 32)
	return int32(v), err == nil && v >= 0
}

// scaled reports whether the deployment was resized after its sets were.
func (r *rollout) scaled() bool {
	for _, rs := range r.sets {
		if n, ok := noted(rs, desiredAnnotation); replicas(rs) > 0 && ok && n != r.desired() {
			return true
		}
	}
	return false
}

// scale adapts the sets to the deployment's size without advancing a rollout. A single
// set takes the whole change. During a rollout each set changes in proportion, so that
// the exposure to the new template stays the same.
func (r *rollout) scale() {
	if one := r.activeOrLatest(); one != nil {
		if replicas(one) != r.desired() || r.misnoted(one) {
			r.resize(one, r.desired())
		}
		return
	}
	if r.saturated() {
		for _, rs := range r.old() {
			if replicas(rs) > 0 {
				r.resize(rs, 0)
			}
		}
		return
	}
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		// The rollout itself will end the old ones: only take note.
		for _, rs := range r.sets {
			r.annotateSize(rs)
		}
		return
	}
	r.scaleInProportion()
}

// activeOrLatest returns the only set with replicas, or the newest (or youngest) if
// none has any. It returns nil if several have.
func (r *rollout) activeOrLatest() *appsv1.ReplicaSet {
	var active []*appsv1.ReplicaSet
	for _, rs := range r.sets {
		if replicas(rs) > 0 {
			active = append(active, rs)
		}
	}
	switch {
	case len(active) == 1:
		return active[0]
	case len(active) > 1 || len(r.sets) == 0:
		return nil
	case r.newest != nil:
		return r.newest
	}
	return r.sets[len(r.sets)-1]
}

func (r *rollout) misnoted(rs *appsv1.ReplicaSet) bool {
	n, ok := noted(rs, desiredAnnotation)
	return !ok || n != r.desired()
}

// saturated reports whether the newest set has replaced the others completely.
func (r *rollout) saturated() bool {
	return r.newest != nil && replicas(r.newest) == r.desired() && !r.misnoted(r.newest) && r.newest.Status.AvailableReplicas == r.desired()
}

func (r *rollout) scaleInProportion() {
	var active []*appsv1.ReplicaSet
	for _, rs := range r.sets {
		if replicas(rs) > 0 {
			active = append(active, rs)
		}
	}
	surge, _ := r.bounds()
	allowed := int32(0)
	if r.desired() > 0 {
		allowed = r.desired() + surge
	}
	add := allowed - total(active)
	// Largest first; sets of equal size by age, the youngest first when growing and the
	// oldest first when shrinking. What rounding leaves over goes to the first.
	slices.SortStableFunc(active, func(a, b *appsv1.ReplicaSet) int {
		age := a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		if add > 0 {
			age = -age
		}
		return cmp.Or(cmp.Compare(replicas(b), replicas(a)), age)
	})
	sizes := make([]int32, len(active))
	var added int32
	for i, rs := range active {
		sizes[i] = replicas(rs)
		if add != 0 {
			share := r.share(rs, add, added, allowed)
			sizes[i] += share
			added += share
		}
	}
	for i, rs := range active {
		if i == 0 && add != 0 {
			sizes[i] = max(sizes[i]+add-added, 0)
		}
		r.resize(rs, sizes[i])
	}
}

// share returns a set's part of the replicas to add (or remove), at most what is left.
func (r *rollout) share(rs *appsv1.ReplicaSet, add, added, allowed int32) int32 {
	left := add - added
	if replicas(rs) == 0 || left == 0 {
		return 0
	}
	if r.desired() == 0 {
		return max(-replicas(rs), left)
	}
	base, ok := noted(rs, maxAnnotation)
	if !ok || base == 0 {
		base = r.d.Status.Replicas
	}
	fraction := int32(0)
	if base > 0 {
		fraction = int32(math.Round(float64(replicas(rs))*float64(allowed)/float64(base))) - replicas(rs)
	}
	if add > 0 {
		return min(max(fraction, 0), left)
	}
	return max(min(fraction, 0), left)
}
