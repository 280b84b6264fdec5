package apps

import (
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Deployment is the row of deployments.
func Deployment() *resource.Kind {
	k := row.Namespaced[appsv1.Deployment, appsv1.DeploymentList](appsv1.SchemeGroupVersion, "deployments", "deployments")
	k.ShortNames = []string{"deploy"}
	k.Categories = []string{"all"}
	k.Rules = resource.Typed[*appsv1.Deployment]{
		PrepareCreate: func(d *appsv1.Deployment) { d.Status = appsv1.DeploymentStatus{} },
		PrepareUpdate: func(d, old *appsv1.Deployment) { d.Status = old.Status },
		// A changed annotation counts too: controllers act on some of them.
		SpecChanged: func(d, old *appsv1.Deployment) bool {
			return !maps.Equal(d.Annotations, old.Annotations) || !equality.Semantic.DeepEqual(d.Spec, old.Spec)
		},
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*appsv1.Deployment]{
			PrepareUpdate: func(d, old *appsv1.Deployment) {
				d.Spec = old.Spec
				d.Labels = old.Labels
			},
		}.Rules()),
		"scale": row.Scale(resource.Scale{
			Get: func(o resource.Object) (int32, int32, string) {
				d := o.(*appsv1.Deployment)
				return replicas(d.Spec.Replicas), d.Status.Replicas, selector(d.Spec.Selector)
			},
			Set: func(o resource.Object, n int32) { o.(*appsv1.Deployment).Spec.Replicas = &n },
		}),
	}
	return k
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func selector(s *metav1.LabelSelector) string {
	if s == nil {
		return ""
	}
	parsed, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return parsed.String()
}
