// Package kind is the catalogue of the kinds that Keelson serves. Each API group has a package
// below it, and each kind a file.
//
// It must never contain rules itself.
package kind

import (
	"slices"

	"keelson.dev/services/apiserver/internal/kind/apps"
	"keelson.dev/services/apiserver/internal/kind/authentication"
	"keelson.dev/services/apiserver/internal/kind/authorization"
	"keelson.dev/services/apiserver/internal/kind/autoscaling"
	"keelson.dev/services/apiserver/internal/kind/batch"
	"keelson.dev/services/apiserver/internal/kind/certificates"
	"keelson.dev/services/apiserver/internal/kind/coordination"
	"keelson.dev/services/apiserver/internal/kind/core"
	"keelson.dev/services/apiserver/internal/kind/discovery"
	"keelson.dev/services/apiserver/internal/kind/events"
	"keelson.dev/services/apiserver/internal/kind/metrics"
	"keelson.dev/services/apiserver/internal/kind/networking"
	"keelson.dev/services/apiserver/internal/kind/node"
	"keelson.dev/services/apiserver/internal/kind/policy"
	"keelson.dev/services/apiserver/internal/kind/rbac"
	"keelson.dev/services/apiserver/internal/kind/scheduling"
	"keelson.dev/services/apiserver/internal/kind/storage"
	"keelson.dev/services/apiserver/internal/resource"
)

// All returns the rows of all kinds, as new values in each call.
func All() []*resource.Kind {
	return slices.Concat(
		core.Kinds(),
		apps.Kinds(),
		autoscaling.Kinds(),
		batch.Kinds(),
		policy.Kinds(),
		networking.Kinds(),
		node.Kinds(),
		discovery.Kinds(),
		events.Kinds(),
		storage.Kinds(),
		coordination.Kinds(),
		scheduling.Kinds(),
		rbac.Kinds(),
		metrics.Kinds(),
		certificates.Kinds(),
		authentication.Kinds(),
		authorization.Kinds(),
	)
}
