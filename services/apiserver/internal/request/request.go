// Package request is what every layer of the apiserver knows of a request: who
// asks, what for, and under which trace. It must never know a transport.
package request

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// User is who asks.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
	// Expires is when the credential ends by itself; zero is never.
	Expires time.Time
	// Credential is what the user was authenticated by, where it can be withdrawn.
	Credential Credential
	// Impersonation is the impersonator's right to act as this user; nil without one.
	Impersonation Credential
}

// Credential is a credential that was accepted.
type Credential interface {
	// Valid is false once the credential would be refused. One that cannot be checked
	// at the moment is valid.
	Valid(ctx context.Context) bool
}

// Attributes are what authorization decides on.
type Attributes struct {
	User User
	// Verb is a Kubernetes verb: get, list, watch, create, update, patch, delete,
	// deletecollection, or a special one such as bind, escalate, impersonate.
	Verb string
	// Resource, Namespace, Name and Subresource are empty for a path.
	Resource    schema.GroupVersionResource
	Subresource string
	Namespace   string
	Name        string
	// Path is the URL path of a request that is not for a resource.
	Path string
	// FieldSelector and LabelSelector of a list, watch or deletecollection, as
	// the client wrote them.
	FieldSelector, LabelSelector string
}

// IsResource tells a request for a resource from one for a path.
func (a *Attributes) IsResource() bool { return a.Path == "" }

type userKey struct{}

// WithUser attaches the authenticated user.
func WithUser(ctx context.Context, u User) context.Context {
	return context.WithValue(ctx, userKey{}, u)
}

// UserFrom is the authenticated user; the zero User before authentication.
func UserFrom(ctx context.Context) User {
	u, _ := ctx.Value(userKey{}).(User)
	return u
}
