package openapi

import (
	"maps"
	"slices"

	"keelson.dev/services/apiserver/internal/resource"
)

// Resource is what the generator of the documents needs to know about a row.
type Resource struct {
	Group      string   `json:"group"`
	Version    string   `json:"version"`
	Kind       string   `json:"kind"`
	Resource   string   `json:"resource"`
	Namespaced bool     `json:"namespaced"`
	Verbs      []string `json:"verbs"`
	// ReturnsDeleted is true if a delete returns the object.
	ReturnsDeleted bool          `json:"returnsDeleted,omitempty"`
	Subresources   []Subresource `json:"subresources,omitempty"`
}

// Subresource is a subresource of a Resource.
type Subresource struct {
	Name    string   `json:"name"`
	Group   string   `json:"group"`
	Version string   `json:"version"`
	Kind    string   `json:"kind"`
	Verbs   []string `json:"verbs"`
	// Connect is the name of the stream, if the subresource is one.
	Connect string `json:"connect,omitempty"`
}

// Resources describes a table to the generator.
func Resources(t *resource.Table) []Resource {
	var out []Resource
	for _, k := range t.Kinds() {
		r := Resource{
			Group: k.GVK.Group, Version: k.GVK.Version, Kind: k.GVK.Kind,
			Resource: k.Resource, Namespaced: k.Namespaced, Verbs: k.Verbs(),
			ReturnsDeleted: k.ReturnsDeleted,
		}
		for _, name := range slices.Sorted(maps.Keys(k.Subresources)) {
			s := k.Subresources[name]
			if s.Projection != nil {
				continue
			}
			gvk := s.GVK
			if gvk.Kind == "" {
				gvk = k.GVK
			}
			r.Subresources = append(r.Subresources, Subresource{
				Name: name, Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind,
				Verbs: slices.Sorted(slices.Values(s.Verbs)), Connect: string(s.Connect),
			})
		}
		out = append(out, r)
	}
	return out
}
