// Package authorization contains the kinds of the group authorization.k8s.io. They can only be
// created: the response answers the request, and nothing is stored.
//
// Its rules must only use the objects that they are given.
package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		SubjectAccessReview(),
		SelfSubjectAccessReview(),
		SelfSubjectRulesReview(),
		LocalSubjectAccessReview(),
	}
}

// SubjectAccessReview returns the row of subjectaccessreviews.
func SubjectAccessReview() *resource.Kind {
	k := row.Virtual[authorizationv1.SubjectAccessReview](
		authorizationv1.SchemeGroupVersion, "subjectaccessreviews", resource.ReviewAccess, false)
	k.Rules = resource.Typed[*authorizationv1.SubjectAccessReview]{Validate: validateSubject}.Rules()
	return k
}

// SelfSubjectAccessReview returns the row of selfsubjectaccessreviews.
func SelfSubjectAccessReview() *resource.Kind {
	k := row.Virtual[authorizationv1.SelfSubjectAccessReview](
		authorizationv1.SchemeGroupVersion, "selfsubjectaccessreviews", resource.ReviewSelfAccess, false)
	k.Rules = resource.Typed[*authorizationv1.SelfSubjectAccessReview]{Validate: validateSelf}.Rules()
	return k
}

// SelfSubjectRulesReview returns the row of selfsubjectrulesreviews.
func SelfSubjectRulesReview() *resource.Kind {
	return row.Virtual[authorizationv1.SelfSubjectRulesReview](
		authorizationv1.SchemeGroupVersion, "selfsubjectrulesreviews", resource.ReviewSelfRules, false)
}

// LocalSubjectAccessReview returns the row of localsubjectaccessreviews.
func LocalSubjectAccessReview() *resource.Kind {
	k := row.Virtual[authorizationv1.LocalSubjectAccessReview](
		authorizationv1.SchemeGroupVersion, "localsubjectaccessreviews", resource.ReviewLocalAccess, true)
	k.Rules = resource.Typed[*authorizationv1.LocalSubjectAccessReview]{Validate: validateLocal}.Rules()
	return k
}
