// Package authorization holds the kinds of the group authorization.k8s.io. They
// are posted and answered, never stored.
//
// Its rules must never look at anything but the objects that they are given.
package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Kinds are the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		SubjectAccessReview(),
		SelfSubjectAccessReview(),
		SelfSubjectRulesReview(),
		LocalSubjectAccessReview(),
	}
}

// SubjectAccessReview is the row of subjectaccessreviews.
func SubjectAccessReview() *resource.Kind {
	return row.Virtual[authorizationv1.SubjectAccessReview](
		authorizationv1.SchemeGroupVersion, "subjectaccessreviews", resource.VirtualSubjectAccessReview, false)
}

// SelfSubjectAccessReview is the row of selfsubjectaccessreviews.
func SelfSubjectAccessReview() *resource.Kind {
	return row.Virtual[authorizationv1.SelfSubjectAccessReview](
		authorizationv1.SchemeGroupVersion, "selfsubjectaccessreviews", resource.VirtualSelfSubjectAccessReview, false)
}

// SelfSubjectRulesReview is the row of selfsubjectrulesreviews.
func SelfSubjectRulesReview() *resource.Kind {
	return row.Virtual[authorizationv1.SelfSubjectRulesReview](
		authorizationv1.SchemeGroupVersion, "selfsubjectrulesreviews", resource.VirtualSelfSubjectRulesReview, false)
}

// LocalSubjectAccessReview is the row of localsubjectaccessreviews.
func LocalSubjectAccessReview() *resource.Kind {
	return row.Virtual[authorizationv1.LocalSubjectAccessReview](
		authorizationv1.SchemeGroupVersion, "localsubjectaccessreviews", resource.VirtualLocalSubjectAccessReview, true)
}
