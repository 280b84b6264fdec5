// Package authentication contains the kinds of the group authentication.k8s.io. They can only be
// created: the response answers the request, and nothing is stored.
//
// Its rules must only use the objects that they are given.
package authentication

import (
	authenticationv1 "k8s.io/api/authentication/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{TokenReview(), SelfSubjectReview()}
}

// TokenReview returns the row of tokenreviews.
func TokenReview() *resource.Kind {
	return row.Virtual[authenticationv1.TokenReview](
		authenticationv1.SchemeGroupVersion, "tokenreviews", resource.ReviewToken, false)
}

// SelfSubjectReview returns the row of selfsubjectreviews.
func SelfSubjectReview() *resource.Kind {
	return row.Virtual[authenticationv1.SelfSubjectReview](
		authenticationv1.SchemeGroupVersion, "selfsubjectreviews", resource.ReviewSelf, false)
}
