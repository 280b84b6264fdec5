package rest

import (
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// smallTable is a table with one kind of each sort that the front distinguishes. It does not grow
// with the catalogue.
func smallTable() []*resource.Kind {
	pod := row.Namespaced[corev1.Pod, corev1.PodList](corev1.SchemeGroupVersion, "pods", "pods")
	pod.ShortNames, pod.Categories = []string{"po"}, []string{"all"}
	pod.Columns = []metav1.TableColumnDefinition{
		{Name: "Status", Type: "string", Description: "The phase."},
		{Name: "Restarts", Type: "integer", Description: "How often containers were restarted."},
		{Name: "Node", Type: "string", Description: "Where it runs.", Priority: 1},
	}
	pod.Cells = func(o resource.Object) []any {
		p := o.(*corev1.Pod)
		return []any{string(p.Status.Phase), 0, p.Spec.NodeName}
	}
	pod.Subresources = map[string]*resource.Subresource{
		"status":      row.View(resource.Rules{}),
		"binding":     row.Change[corev1.Binding](corev1.SchemeGroupVersion, resource.Change{}),
		"log":         row.Connect(corev1.SchemeGroupVersion.WithKind("Pod"), "log", "get"),
		"exec":        row.Connect(corev1.SchemeGroupVersion.WithKind("PodExecOptions"), "exec", "create", "get"),
		"attach":      row.Connect(corev1.SchemeGroupVersion.WithKind("PodAttachOptions"), "attach", "create", "get"),
		"portforward": row.Connect(corev1.SchemeGroupVersion.WithKind("PodPortForwardOptions"), "portforward", "create", "get"),
	}
	configMap := row.Namespaced[corev1.ConfigMap, corev1.ConfigMapList](corev1.SchemeGroupVersion, "configmaps", "configmaps")
	configMap.ShortNames = []string{"cm"}
	namespace := row.Cluster[corev1.Namespace, corev1.NamespaceList](corev1.SchemeGroupVersion, "namespaces", "namespaces")
	namespace.Terminate = func(resource.Object) {}
	namespace.NoDeleteCollection = true
	namespace.Subresources = map[string]*resource.Subresource{
		"status":   row.View(resource.Rules{}),
		"finalize": {Verbs: []string{"update"}, View: &resource.Rules{}},
	}
	node := row.Cluster[corev1.Node, corev1.NodeList](corev1.SchemeGroupVersion, "nodes", "minions")
	account := row.Namespaced[corev1.ServiceAccount, corev1.ServiceAccountList](corev1.SchemeGroupVersion, "serviceaccounts", "serviceaccounts")
	account.Subresources = map[string]*resource.Subresource{
		"token": row.Action[authenticationv1.TokenRequest](authenticationv1.SchemeGroupVersion, resource.IssueToken),
	}
	deployment := row.Namespaced[appsv1.Deployment, appsv1.DeploymentList](appsv1.SchemeGroupVersion, "deployments", "deployments")
	deployment.ShortNames = []string{"deploy"}
	deployment.Subresources = map[string]*resource.Subresource{
		"scale": row.Scale(resource.Scale{}), "status": row.View(resource.Rules{}),
	}
	review := row.Virtual[authenticationv1.TokenReview](authenticationv1.SchemeGroupVersion, "tokenreviews", resource.ReviewToken, false)
	return []*resource.Kind{pod, configMap, namespace, node, account, deployment, review}
}
