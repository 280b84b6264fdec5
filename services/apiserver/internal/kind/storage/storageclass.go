package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// StorageClass is the row of storageclasses.
func StorageClass() *resource.Kind {
	k := row.Cluster[storagev1.StorageClass, storagev1.StorageClassList](storagev1.SchemeGroupVersion, "storageclasses", "storageclasses")
	k.ShortNames = []string{"sc"}
	k.NoGeneration = true
	return k
}
