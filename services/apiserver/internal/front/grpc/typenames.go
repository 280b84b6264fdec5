package grpc

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// typeNames maps the type URLs of Any to kinds, and kinds to type URLs.
type typeNames struct {
	kinds map[string]schema.GroupVersionKind
	urls  map[*resource.Kind]string
}

// others are the kinds without a row, which subresources read and write.
var others = map[schema.GroupVersionKind]any{
	corev1.SchemeGroupVersion.WithKind("Binding"):                &corev1.Binding{},
	policyv1.SchemeGroupVersion.WithKind("Eviction"):             &policyv1.Eviction{},
	authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"): &authenticationv1.TokenRequest{},
	autoscalingv1.SchemeGroupVersion.WithKind("Scale"):           &autoscalingv1.Scale{},
}

func newTypeNames(t *resource.Table) *typeNames {
	n := &typeNames{kinds: map[string]schema.GroupVersionKind{}, urls: map[*resource.Kind]string{}}
	for gvk, obj := range others {
		n.kinds[typePrefix+protoName(obj)] = gvk
	}
	for _, k := range t.Kinds() {
		n.kinds[typePrefix+k.ProtoName] = k.GVK
		n.urls[k] = typePrefix + k.ProtoName
	}
	return n
}

// kind returns the kind that a type URL names. For an unknown URL it returns a kind of that name
// without a group, which nothing accepts.
func (n *typeNames) kind(url string) schema.GroupVersionKind {
	if gvk, ok := n.kinds[url]; ok {
		return gvk
	}
	return schema.GroupVersionKind{Kind: strings.TrimPrefix(url, typePrefix)}
}

func (n *typeNames) url(k *resource.Kind) string { return n.urls[k] }

// protoName returns the protobuf message name of a Go type of k8s.io/api.
func protoName(obj any) string {
	t := reflect.TypeOf(obj).Elem()
	return strings.ReplaceAll(t.PkgPath(), "/", ".") + "." + t.Name()
}
