package fieldmanager

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
)

// door is a resource and the subresource through which it is written.
type door struct {
	resource    schema.GroupResource
	subresource string
}

// resets lists the doors whose reset fields differ from the rule below (GetResetFields of
// Kubernetes' strategies).
var resets = map[door][]string{
	{schema.GroupResource{Resource: "pods"}, "status"}:                                                       {"spec", "metadata.deletionTimestamp", "metadata.ownerReferences"},
	{schema.GroupResource{Group: "apps", Resource: "deployments"}, "status"}:                                 {"spec", "metadata.labels"},
	{schema.GroupResource{Group: "certificates.k8s.io", Resource: "certificatesigningrequests"}, "approval"}: {"spec"},
	{schema.GroupResource{Resource: "namespaces"}, "finalize"}:                                               {"status"},
}

// resetFields returns the paths that a door ignores, whatever the client sends, and that its
// writers therefore do not own.
func resetFields(k *resource.Kind, subresource string) []string {
	if r, ok := resets[door{k.GVK.GroupVersion().WithResource(k.Resource).GroupResource(), subresource}]; ok {
		return r
	}
	switch subresource {
	case "":
		if _, ok := k.Subresources["status"]; ok {
			return statusOnly
		}
	case "status":
		return specOnly
	}
	return nil
}

var statusOnly, specOnly = []string{"status"}, []string{"spec"}
