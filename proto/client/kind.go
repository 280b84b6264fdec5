package client

import (
	"fmt"
	"reflect"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Kind describes a built-in kind.
type Kind struct {
	// GVK is the group, version and kind. The core group is empty.
	GVK schema.GroupVersionKind
	// Resource is the plural, for instance "pods". It is empty for kinds that only travel
	// as the body of a subresource (Scale, Eviction, TokenRequest).
	Resource string
	// Namespaced is true if objects belong to a namespace.
	Namespaced bool
	// ProtoName is the full name of the protobuf message, for instance
	// "k8s.io.api.core.v1.Pod".
	ProtoName string
	// New returns an empty object.
	New func() Object

	goType reflect.Type
	// unstored is true for kinds that the apiserver does not serve yet, kinds that are
	// never stored, and kinds that show the stored objects of another.
	unstored bool
}

// Stored reports whether the apiserver stores objects of the kind, so that they can be
// listed, watched and deleted. It is false for kinds that are only posted, and true for one
// of two kinds that show the same objects.
func (k *Kind) Stored() bool { return k.Resource != "" && !k.unstored }

// unstored marks the row of a kind that is not stored.
func unstored(k *Kind) *Kind {
	k.unstored = true
	return k
}

// GVR returns the kind's group, version and resource.
func (k *Kind) GVR() schema.GroupVersionResource {
	return k.GVK.GroupVersion().WithResource(k.Resource)
}

// APIVersion returns group and version as objects name them, for instance "apps/v1".
func (k *Kind) APIVersion() string { return k.GVK.GroupVersion().String() }

// Ref returns the reference to a collection (empty name), an object or a subresource of the
// kind.
func (k *Kind) Ref(namespace, name, subresource string) *resourcev1.Ref {
	return &resourcev1.Ref{
		Group: k.GVK.Group, Version: k.GVK.Version, Resource: k.Resource,
		Namespace: namespace, Name: name, Subresource: subresource,
	}
}

// object is implemented by pointers to the Go structs of Kubernetes' API.
type object[E any] interface {
	*E
	Object
}

// kind returns a row of the table. The name of the protobuf message follows from the Go
// package, as in Kubernetes.
func kind[E any, P object[E]](group, resource string, namespaced bool) *Kind {
	t := reflect.TypeFor[P]()
	pkg := t.Elem().PkgPath()
	return &Kind{
		GVK:        schema.GroupVersionKind{Group: group, Version: pkg[strings.LastIndexByte(pkg, '/')+1:], Kind: t.Elem().Name()},
		Resource:   resource,
		Namespaced: namespaced,
		ProtoName:  strings.ReplaceAll(pkg, "/", ".") + "." + t.Elem().Name(),
		New:        func() Object { return P(new(E)) },
		goType:     t,
	}
}

const (
	cluster    = false
	namespaced = true
)

var kinds = []*Kind{
	kind[corev1.Namespace]("", "namespaces", cluster),
	kind[corev1.Node]("", "nodes", cluster),
	kind[corev1.Pod]("", "pods", namespaced),
	kind[corev1.PodTemplate]("", "podtemplates", namespaced),
	kind[corev1.ReplicationController]("", "replicationcontrollers", namespaced),
	kind[corev1.Service]("", "services", namespaced),
	kind[corev1.Endpoints]("", "endpoints", namespaced), //nolint:staticcheck // it is still served and still written.
	kind[corev1.ConfigMap]("", "configmaps", namespaced),
	kind[corev1.Secret]("", "secrets", namespaced),
	kind[corev1.ServiceAccount]("", "serviceaccounts", namespaced),
	kind[corev1.Event]("", "events", namespaced),
	kind[corev1.LimitRange]("", "limitranges", namespaced),
	kind[corev1.ResourceQuota]("", "resourcequotas", namespaced),
	kind[corev1.PersistentVolume]("", "persistentvolumes", cluster),
	kind[corev1.PersistentVolumeClaim]("", "persistentvolumeclaims", namespaced),
	unstored(kind[corev1.ComponentStatus]("", "componentstatuses", cluster)), //nolint:staticcheck // kubectl still asks.
	unstored(kind[corev1.Binding]("", "bindings", namespaced)),

	kind[appsv1.ControllerRevision]("apps", "controllerrevisions", namespaced),
	kind[appsv1.DaemonSet]("apps", "daemonsets", namespaced),
	kind[appsv1.Deployment]("apps", "deployments", namespaced),
	kind[appsv1.ReplicaSet]("apps", "replicasets", namespaced),
	kind[appsv1.StatefulSet]("apps", "statefulsets", namespaced),

	kind[batchv1.CronJob]("batch", "cronjobs", namespaced),
	kind[batchv1.Job]("batch", "jobs", namespaced),

	kind[rbacv1.ClusterRole]("rbac.authorization.k8s.io", "clusterroles", cluster),
	kind[rbacv1.ClusterRoleBinding]("rbac.authorization.k8s.io", "clusterrolebindings", cluster),
	kind[rbacv1.Role]("rbac.authorization.k8s.io", "roles", namespaced),
	kind[rbacv1.RoleBinding]("rbac.authorization.k8s.io", "rolebindings", namespaced),

	kind[discoveryv1.EndpointSlice]("discovery.k8s.io", "endpointslices", namespaced),

	unstored(kind[storagev1.CSIDriver]("storage.k8s.io", "csidrivers", cluster)),
	unstored(kind[storagev1.CSINode]("storage.k8s.io", "csinodes", cluster)),
	unstored(kind[storagev1.CSIStorageCapacity]("storage.k8s.io", "csistoragecapacities", namespaced)),
	kind[storagev1.StorageClass]("storage.k8s.io", "storageclasses", cluster),
	unstored(kind[storagev1.VolumeAttachment]("storage.k8s.io", "volumeattachments", cluster)),
	unstored(kind[storagev1.VolumeAttributesClass]("storage.k8s.io", "volumeattributesclasses", cluster)),

	kind[schedulingv1.PriorityClass]("scheduling.k8s.io", "priorityclasses", cluster),
	kind[coordinationv1.Lease]("coordination.k8s.io", "leases", namespaced),
	kind[certificatesv1.CertificateSigningRequest]("certificates.k8s.io", "certificatesigningrequests", cluster),

	kind[nodev1.RuntimeClass]("node.k8s.io", "runtimeclasses", cluster),

	kind[policyv1.PodDisruptionBudget]("policy", "poddisruptionbudgets", namespaced),
	kind[policyv1.Eviction]("policy", "", namespaced),

	unstored(kind[eventsv1.Event]("events.k8s.io", "events", namespaced)),

	kind[autoscalingv2.HorizontalPodAutoscaler]("autoscaling", "horizontalpodautoscalers", namespaced),
	unstored(kind[autoscalingv1.HorizontalPodAutoscaler]("autoscaling", "horizontalpodautoscalers", namespaced)),
	kind[autoscalingv1.Scale]("autoscaling", "", namespaced),

	unstored(kind[metricsv1beta1.NodeMetrics]("metrics.k8s.io", "nodes", cluster)),
	unstored(kind[metricsv1beta1.PodMetrics]("metrics.k8s.io", "pods", namespaced)),

	kind[authenticationv1.TokenRequest]("authentication.k8s.io", "", namespaced),
	unstored(kind[authenticationv1.TokenReview]("authentication.k8s.io", "tokenreviews", cluster)),
	unstored(kind[authenticationv1.SelfSubjectReview]("authentication.k8s.io", "selfsubjectreviews", cluster)),

	unstored(kind[authorizationv1.LocalSubjectAccessReview]("authorization.k8s.io", "localsubjectaccessreviews", namespaced)),
	unstored(kind[authorizationv1.SelfSubjectAccessReview]("authorization.k8s.io", "selfsubjectaccessreviews", cluster)),
	unstored(kind[authorizationv1.SelfSubjectRulesReview]("authorization.k8s.io", "selfsubjectrulesreviews", cluster)),
	unstored(kind[authorizationv1.SubjectAccessReview]("authorization.k8s.io", "subjectaccessreviews", cluster)),

	kind[networkingv1.Ingress]("networking.k8s.io", "ingresses", namespaced),
	kind[networkingv1.IngressClass]("networking.k8s.io", "ingressclasses", cluster),
	unstored(kind[networkingv1.IPAddress]("networking.k8s.io", "ipaddresses", cluster)),
	kind[networkingv1.NetworkPolicy]("networking.k8s.io", "networkpolicies", namespaced),
	unstored(kind[networkingv1.ServiceCIDR]("networking.k8s.io", "servicecidrs", cluster)),
}

var byType = func() map[reflect.Type]*Kind {
	m := make(map[reflect.Type]*Kind, len(kinds))
	for _, k := range kinds {
		m[k.goType] = k
	}
	return m
}()

// Kinds returns the built-in kinds. The slice and the kinds are shared and must not be
// changed.
func Kinds() []*Kind { return kinds }

// KindOf returns the kind of obj, by its Go type or that of an [Unstructured], or nil if it is not
// built in.
func KindOf(obj Object) *Kind {
	if u, ok := obj.(*Unstructured); ok {
		return u.kind
	}
	return byType[reflect.TypeOf(obj)]
}

// KindFor returns the kind with a collection that gvk names, or nil if it is not built in.
func KindFor(gvk schema.GroupVersionKind) *Kind {
	for _, k := range kinds {
		if k.GVK == gvk && k.Resource != "" {
			return k
		}
	}
	return nil
}

// KindForResource returns the kind whose collection gvr names, or nil if it is not built in.
func KindForResource(gvr schema.GroupVersionResource) *Kind {
	for _, k := range kinds {
		if k.Resource == gvr.Resource && k.GVK.Group == gvr.Group && k.GVK.Version == gvr.Version && k.Resource != "" {
			return k
		}
	}
	return nil
}

// mustKind returns the kind of a Go type. It panics if there is none: the type parameter is
// wrong.
func mustKind(t reflect.Type) *Kind {
	k := byType[t]
	if k == nil {
		panic(fmt.Sprintf("client: %s is not a kind", t))
	}
	return k
}
