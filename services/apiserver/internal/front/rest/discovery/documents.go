package discovery

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
)

// group and version collect the rows of the table, in its order.
type group struct {
	name     string
	versions []*version
}

type version struct {
	name  string
	kinds []*resource.Kind
}

func collect(t *resource.Table) []*group {
	var groups []*group
	for _, k := range t.Kinds() {
		i := slices.IndexFunc(groups, func(g *group) bool { return g.name == k.GVK.Group })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{name: k.GVK.Group})
		}
		g := groups[i]
		j := slices.IndexFunc(g.versions, func(v *version) bool { return v.name == k.GVK.Version })
		if j < 0 {
			j = len(g.versions)
			g.versions = append(g.versions, &version{name: k.GVK.Version})
		}
		g.versions[j].kinds = append(g.versions[j].kinds, k)
	}
	for _, g := range groups {
		for _, v := range g.versions {
			slices.SortStableFunc(v.kinds, func(a, b *resource.Kind) int { return cmp.Compare(a.Resource, b.Resource) })
		}
	}
	return groups
}

func apiGroup(g *group) metav1.APIGroup {
	out := metav1.APIGroup{Name: g.name}
	for _, v := range g.versions {
		out.Versions = append(out.Versions, metav1.GroupVersionForDiscovery{GroupVersion: g.name + "/" + v.name, Version: v.name})
	}
	out.PreferredVersion = out.Versions[0]
	return out
}

// resourceList returns the unaggregated list of a group and version.
func resourceList(g *group, v *version) *metav1.APIResourceList {
	gv := schema.GroupVersion{Group: g.name, Version: v.name}
	out := &metav1.APIResourceList{
		TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
		GroupVersion: gv.String(),
		APIResources: []metav1.APIResource{},
	}
	for _, k := range v.kinds {
		r := metav1.APIResource{
			Name:         k.Resource,
			SingularName: k.Singular,
			Namespaced:   k.Namespaced,
			Kind:         k.GVK.Kind,
			Verbs:        k.Verbs(),
			ShortNames:   k.ShortNames,
			Categories:   k.Categories,
		}
		if !k.Virtual() {
			r.StorageVersionHash = storageVersionHash(k)
		}
		out.APIResources = append(out.APIResources, r)
		for _, name := range slices.Sorted(maps.Keys(k.Subresources)) {
			s := k.Subresources[name]
			if s.Projection != nil {
				continue
			}
			gvk := subresourceKind(k, s)
			sub := metav1.APIResource{
				Name:       k.Resource + "/" + name,
				Namespaced: k.Namespaced,
				Kind:       gvk.Kind,
				Verbs:      sorted(s.Verbs),
			}
			if gvk.GroupVersion() != gv {
				sub.Group, sub.Version = gvk.Group, gvk.Version
			}
			out.APIResources = append(out.APIResources, sub)
		}
	}
	return out
}

func subresourceKind(k *resource.Kind, s *resource.Subresource) schema.GroupVersionKind {
	if s.GVK.Kind == "" {
		return k.GVK
	}
	return s.GVK
}

func sorted(verbs []string) []string { return slices.Sorted(slices.Values(verbs)) }

// storageVersionHash returns a hash that changes with the stored version, in Kubernetes' form:
// base64 of the first 8 bytes of a hash of group/version/kind.
func storageVersionHash(k *resource.Kind) string {
	gvk := k.GVK
	if k.StoredAs != nil {
		gvk = k.StoredAs.GVK
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{gvk.Group, gvk.Version, gvk.Kind}, "/")))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// aggregate returns the aggregated form.
func aggregate(groups []*group) *apidiscoveryv2.APIGroupDiscoveryList {
	out := &apidiscoveryv2.APIGroupDiscoveryList{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: apidiscoveryv2.SchemeGroupVersion.String()},
		Items:    []apidiscoveryv2.APIGroupDiscovery{},
	}
	for _, g := range groups {
		item := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
		for _, v := range g.versions {
			versioned := apidiscoveryv2.APIVersionDiscovery{Version: v.name, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
			for _, k := range v.kinds {
				versioned.Resources = append(versioned.Resources, resourceDiscovery(k))
			}
			item.Versions = append(item.Versions, versioned)
		}
		out.Items = append(out.Items, item)
	}
	return out
}

func resourceDiscovery(k *resource.Kind) apidiscoveryv2.APIResourceDiscovery {
	scope := apidiscoveryv2.ScopeCluster
	if k.Namespaced {
		scope = apidiscoveryv2.ScopeNamespace
	}
	out := apidiscoveryv2.APIResourceDiscovery{
		Resource:         k.Resource,
		ResponseKind:     responseKind(k.GVK),
		Scope:            scope,
		SingularResource: k.Singular,
		Verbs:            k.Verbs(),
		ShortNames:       k.ShortNames,
		Categories:       k.Categories,
	}
	for _, name := range slices.Sorted(maps.Keys(k.Subresources)) {
		s := k.Subresources[name]
		if s.Projection != nil {
			continue
		}
		out.Subresources = append(out.Subresources, apidiscoveryv2.APISubresourceDiscovery{
			Subresource:  name,
			ResponseKind: responseKind(subresourceKind(k, s)),
			Verbs:        sorted(s.Verbs),
		})
	}
	return out
}

func responseKind(gvk schema.GroupVersionKind) *metav1.GroupVersionKind {
	return &metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}
}
