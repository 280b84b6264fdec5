// Package request holds what every layer of the apiserver knows about a request: its user, its
// attributes and its fence. It must never know about a transport.
package request

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// User is the identity that a request is made by.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
	// Expires is when the credential expires. Zero means never.
	Expires time.Time
	// Credential is what the user was authenticated by, if it can be withdrawn. Otherwise it is
	// nil.
	Credential Credential
	// Impersonation is the impersonator's permission to act as this user, or nil.
	Impersonation Credential
	// Constraint bounds what the impersonator may do as this user. It is nil if there is no such
	// bound.
	Constraint Constraint
}

// Constraint is a permission to act as another user for some requests.
type Constraint interface {
	// Permits returns nil if the permission is for the request, and Forbidden otherwise.
	Permits(ctx context.Context, a *Attributes) error
}

// Credential is a credential that was accepted.
type Credential interface {
	// Valid returns false once the credential would be refused. A credential that cannot be
	// checked at the moment is valid.
	Valid(ctx context.Context) bool
}

// Attributes are what authorization decides on.
type Attributes struct {
	User User
	// Verb is a Kubernetes verb: get, list, watch, create, update, patch, delete,
	// deletecollection, or a special one such as bind, escalate or impersonate.
	Verb string
	// Resource, Namespace, Name and Subresource are empty for a path.
	Resource    schema.GroupVersionResource
	Subresource string
	Namespace   string
	Name        string
	// Path is the URL path of a request that is not for a resource.
	Path string
	// FieldSelector and LabelSelector are those of a list, watch or deletecollection, as the
	// client sent them.
	FieldSelector, LabelSelector string
}

// IsResource reports whether the request is for a resource rather than for a path.
func (a *Attributes) IsResource() bool { return a.Path == "" }

type userKey struct{}

// WithUser attaches the authenticated user to a context.
func WithUser(ctx context.Context, u User) context.Context {
	return context.WithValue(ctx, userKey{}, u)
}

// UserFrom returns the authenticated user, or the zero User before authentication.
func UserFrom(ctx context.Context) User {
	u, _ := ctx.Value(userKey{}).(User)
	return u
}
