package coordination

import (
	coordinationv1 "k8s.io/api/coordination/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Lease is the row of leases.
func Lease() *resource.Kind {
	k := row.Namespaced[coordinationv1.Lease, coordinationv1.LeaseList](coordinationv1.SchemeGroupVersion, "leases", "leases")
	k.NoGeneration = true
	return k
}
