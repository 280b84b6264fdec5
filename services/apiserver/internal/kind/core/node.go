package core

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Node is the row of nodes. An agent registers itself with its status, so status
// may be given on create.
func Node() *resource.Kind {
	k := row.Cluster[corev1.Node, corev1.NodeList](corev1.SchemeGroupVersion, "nodes", "minions")
	k.ShortNames = []string{"no"}
	k.NoGeneration = true
	k.Fields = map[string]func(resource.Object) string{
		"spec.unschedulable": func(o resource.Object) string {
			return strconv.FormatBool(o.(*corev1.Node).Spec.Unschedulable)
		},
	}
	k.Rules = resource.Typed[*corev1.Node]{
		PrepareUpdate: func(n, old *corev1.Node) { n.Status = old.Status },
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*corev1.Node]{
			PrepareUpdate: func(n, old *corev1.Node) { n.Spec = old.Spec },
		}.Rules()),
	}
	return k
}
