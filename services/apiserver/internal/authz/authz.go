// Package authz authorizes requests: with Kubernetes' RBAC and, for nodes, the node authorizer,
// which limits a node's certificate to what its pods need.
//
// Decisions are made from in-memory indexes that follow the watch cache; they never block. The
// package must never allow what it does not know: a missing role, a user without an identity or
// an invalid selector grants nothing.
package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/fields"

	"keelson.dev/services/apiserver/internal/request"
)

// MastersGroup is the group that may do everything, without any rule.
const MastersGroup = "system:masters"

// Authorizer decides on a request. The reason of a refusal says what is missing, if that is
// known; it is shown to the caller.
type Authorizer interface {
	Authorize(ctx context.Context, a *request.Attributes) (allowed bool, reason string, err error)
}

// Authorizers allows a request if one of its authorizers does.
type Authorizers struct {
	Node *Node
	RBAC *RBAC
}

// New returns the authorizer of a cluster. It grants nothing until [Authorizers.Follow] runs.
func New() *Authorizers {
	return &Authorizers{Node: NewNode(), RBAC: NewRBAC()}
}

// Authorize implements Authorizer.
func (z *Authorizers) Authorize(ctx context.Context, a *request.Attributes) (bool, string, error) {
	if c := a.User.Constraint; c != nil {
		if err := c.Permits(ctx, a); err != nil {
			return false, err.Error(), ctx.Err()
		}
	}
	if Privileged(a.User) {
		return true, "", nil
	}
	if name := selectedName(a); name != "" {
		narrowed := *a
		narrowed.Name = name
		a = &narrowed
	}
	allowed, nodeReason, err := z.Node.Authorize(ctx, a)
	if allowed || err != nil {
		return allowed, nodeReason, err
	}
	allowed, reason, err := z.RBAC.Authorize(ctx, a)
	if allowed || err != nil || nodeReason == "" {
		return allowed, reason, err
	}
	if reason != "" {
		nodeReason += "\n" + reason
	}
	return false, nodeReason, nil
}

// Privileged reports whether the user is a member of system:masters.
func Privileged(u request.User) bool { return slices.Contains(u.Groups, MastersGroup) }

// selectedName returns the name that a field selector limits a collection to, so that rules with
// resourceNames apply to watching a single object.
func selectedName(a *request.Attributes) string {
	if a.Name != "" || !strings.Contains(a.FieldSelector, "metadata.name") {
		return ""
	}
	name, _ := selected(a, "metadata.name")
	if name == "" || len(path.IsValidPathSegmentName(name)) > 0 {
		return ""
	}
	return name
}

// selected returns the value that the field selector requires of a field.
func selected(a *request.Attributes, field string) (string, bool) {
	switch a.Verb {
	case "list", "watch", "deletecollection":
	default:
		return "", false
	}
	if a.FieldSelector == "" {
		return "", false
	}
	selector, err := fields.ParseSelector(a.FieldSelector)
	if err != nil {
		return "", false // the pipeline refuses an invalid selector
	}
	return selector.RequiresExactMatch(field)
}

// sanitizer escapes refusals, so that a browser does not take them for HTML.
var sanitizer = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// Forbidden returns Kubernetes' error for a request that was not allowed.
func Forbidden(a *request.Attributes, reason string) *apierrors.StatusError {
	message := sanitizer.Replace(refusal(a))
	if reason != "" {
		message += ": " + reason
	}
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, errors.New(message))
}

func refusal(a *request.Attributes) string {
	if !a.IsResource() {
		return fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	}
	where := "at the cluster scope"
	if a.Namespace != "" {
		where = fmt.Sprintf("in the namespace %q", a.Namespace)
	}
	return fmt.Sprintf("User %q cannot %s resource %q in API group %q %s", a.User.Name, a.Verb, combined(a), a.Resource.Group, where)
}

// combined returns the resource with its subresource, as rules name it.
func combined(a *request.Attributes) string {
	if a.Subresource == "" {
		return a.Resource.Resource
	}
	return a.Resource.Resource + "/" + a.Subresource
}
