package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ReplicaSet is the row of replicasets.
func ReplicaSet() *resource.Kind {
	k := row.Namespaced[appsv1.ReplicaSet, appsv1.ReplicaSetList](appsv1.SchemeGroupVersion, "replicasets", "replicasets")
	k.ShortNames = []string{"rs"}
	k.Categories = []string{"all"}
	k.Fields = map[string]func(resource.Object) string{
		"status.replicas": func(o resource.Object) string {
			return strconv.Itoa(int(o.(*appsv1.ReplicaSet).Status.Replicas))
		},
	}
	k.Rules = resource.Typed[*appsv1.ReplicaSet]{
		PrepareCreate: func(r *appsv1.ReplicaSet) { r.Status = appsv1.ReplicaSetStatus{} },
		PrepareUpdate: func(r, old *appsv1.ReplicaSet) { r.Status = old.Status },
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*appsv1.ReplicaSet]{
			PrepareUpdate: func(r, old *appsv1.ReplicaSet) { r.Spec = old.Spec },
		}.Rules()),
		"scale": row.Scale(resource.Scale{
			Get: func(o resource.Object) (int32, int32, string) {
				r := o.(*appsv1.ReplicaSet)
				return replicas(r.Spec.Replicas), r.Status.Replicas, selector(r.Spec.Selector)
			},
			Set: func(o resource.Object, n int32) { o.(*appsv1.ReplicaSet).Spec.Replicas = &n },
		}),
	}
	return k
}
