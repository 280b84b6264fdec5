// Package authz decides who may do what: Kubernetes' RBAC, and for nodes the node
// authorizer, which lets a node's certificate reach only what its pods need.
//
// Decisions are made from indexes in memory that follow the watch cache; they
// never wait for anything. It must never allow what it does not know: a role that
// is missing, a user without identity or an unreadable selector grants nothing.
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

// MastersGroup may do everything, without any rule.
const MastersGroup = "system:masters"

// Authorizer decides on a request. A refusal's reason says what is missing where
// that is known; it is for the one who asks.
type Authorizer interface {
	Authorize(ctx context.Context, a *request.Attributes) (allowed bool, reason string, err error)
}

// Authorizers asks one after the other until one allows; all refuse only
// together.
type Authorizers struct {
	Node *Node
	RBAC *RBAC
}

// New is the authorizer of a cluster, empty until [Authorizers.Follow] runs.
func New() *Authorizers {
	return &Authorizers{Node: NewNode(), RBAC: NewRBAC()}
}

// Authorize implements Authorizer.
func (z *Authorizers) Authorize(ctx context.Context, a *request.Attributes) (bool, string, error) {
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

// Privileged tells a member of system:masters.
func Privileged(u request.User) bool { return slices.Contains(u.Groups, MastersGroup) }

// selectedName is the name that a field selector limits a collection to, so that
// rules with resourceNames apply to watching one object.
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

// selected is the value that the field selector demands of a field.
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
		return "", false // the pipeline refuses it by itself
	}
	return selector.RequiresExactMatch(field)
}

// sanitizer keeps refusals from looking like HTML to a browser.
var sanitizer = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// Forbidden is Kubernetes' answer to a request that was not allowed.
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

// combined is the resource with its subresource, as rules write it.
func combined(a *request.Attributes) string {
	if a.Subresource == "" {
		return a.Resource.Resource
	}
	return a.Resource.Resource + "/" + a.Subresource
}
