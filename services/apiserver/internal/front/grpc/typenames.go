package grpc

import (
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
)

// typeNames maps the type URLs of Any to kinds, and kinds to type URLs.
type typeNames struct {
	kinds map[string]schema.GroupVersionKind
	urls  map[*resource.Kind]string
}

func newTypeNames(t *resource.Table) *typeNames {
	n := &typeNames{kinds: map[string]schema.GroupVersionKind{}, urls: map[*resource.Kind]string{}}
	for gvk, fresh := range t.Bodies() {
		n.kinds[typePrefix+protoName(fresh())] = gvk
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
