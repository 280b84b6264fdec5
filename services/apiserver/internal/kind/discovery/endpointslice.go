package discovery

import (
	discoveryv1 "k8s.io/api/discovery/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// EndpointSlice is the row of endpointslices.
func EndpointSlice() *resource.Kind {
	k := row.Namespaced[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](discoveryv1.SchemeGroupVersion, "endpointslices", "endpointslices")
	return k
}
