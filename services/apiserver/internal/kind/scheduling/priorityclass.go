package scheduling

import (
	schedulingv1 "k8s.io/api/scheduling/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// PriorityClass is the row of priorityclasses.
func PriorityClass() *resource.Kind {
	k := row.Cluster[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](schedulingv1.SchemeGroupVersion, "priorityclasses", "priorityclasses")
	k.ShortNames = []string{"pc"}
	return k
}
