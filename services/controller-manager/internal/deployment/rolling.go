package deployment

import (
	"math"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// bounds returns maxSurge and maxUnavailable in pods. Percentages are rounded in the
// safe direction, surge up and unavailable down. If both are 0, one pod may be
// unavailable, or the rollout could not progress.
func (r *rollout) bounds() (surge, unavailable int32) {
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return 0, 0
	}
	quarter := intstr.FromString("25%")
	maxSurge, maxUnavailable := &quarter, &quarter
	if ru := r.d.Spec.Strategy.RollingUpdate; ru != nil {
		if ru.MaxSurge != nil {
			maxSurge = ru.MaxSurge
		}
		if ru.MaxUnavailable != nil {
			maxUnavailable = ru.MaxUnavailable
		}
	}
	surge = resolve(maxSurge, r.desired(), true)
	unavailable = resolve(maxUnavailable, r.desired(), false)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, r.desired())
}

func resolve(v *intstr.IntOrString, of int32, up bool) int32 {
	n, err := intstr.GetScaledValueFromIntOrPercent(v, int(of), up)
	if err != nil || n < 0 || n > math.MaxInt32 {
		return 0 // validation keeps such values out.
	}
	return int32(n)
}

// roll scales the newest set up as far as maxSurge allows and the old ones down as far
// as maxUnavailable allows. New pods count as unavailable, so both may be written
// together.
func (r *rollout) roll() {
	surge, unavailable := r.bounds()
	r.growNewest(surge)
	old := r.old()
	if total(old) == 0 {
		return
	}
	minAvailable := r.desired() - unavailable
	// The number that may be removed even if no unavailable pod ever becomes available.
	newUnavailable := replicas(r.newest) - available(r.newest)
	room := total(r.sets) - minAvailable - newUnavailable
	if room <= 0 {
		return
	}
	room -= r.dropUnavailable(old, room)
	// Available pods are removed only as long as enough others are left.
	room = min(room, availableIn(r.sets)-minAvailable)
	for _, rs := range old {
		if room <= 0 {
			return
		}
		n := min(replicas(rs), room)
		if n > 0 {
			r.resize(rs, replicas(rs)-n)
			room -= n
		}
	}
}

func (r *rollout) growNewest(surge int32) {
	have, want := replicas(r.newest), r.desired()
	if have > want {
		r.resize(r.newest, want)
		return
	}
	room := want + surge - total(r.sets)
	if room > 0 && have < want {
		r.resize(r.newest, have+min(room, want-have))
	}
}

// dropUnavailable scales the old sets down by their unavailable pods, at most by room
// in total.
func (r *rollout) dropUnavailable(old []*appsv1.ReplicaSet, room int32) (dropped int32) {
	for _, rs := range old {
		n := min(replicas(rs)-available(rs), room-dropped)
		if n > 0 {
			r.resize(rs, replicas(rs)-n)
			dropped += n
		}
	}
	return dropped
}
