package pipeline

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// Authorize decides whether the user may use verb on the target.
func (p *Pipeline) Authorize(ctx context.Context, verb string, t Target) error {
	return p.authorize(ctx, verb, t, "", "")
}

// enter is the first step of every verb, whatever front or batch it came from: it finds the row
// and the subresource of the target, checks that they serve the verb and that the target has the
// scope and the names that the verb needs, and authorizes the request. A request that is both
// malformed and forbidden is refused as forbidden, so that only callers with the right learn what
// is wrong with it.
func (p *Pipeline) enter(ctx context.Context, verb string, t Target, labelSelector, fieldSelector string) (*resource.Kind, *resource.Subresource, error) {
	k, sub, malformed := p.kind(t)
	if malformed == nil {
		malformed = checkTarget(verb, k, sub, t)
	}
	if err := p.authorize(ctx, verb, t, labelSelector, fieldSelector); err != nil {
		return nil, nil, err
	}
	return k, sub, malformed
}

// AuthorizePath decides whether the user may use verb on a path.
func (p *Pipeline) AuthorizePath(ctx context.Context, verb, path string) error {
	return p.decide(ctx, &request.Attributes{User: request.UserFrom(ctx), Verb: verb, Path: path})
}

func (p *Pipeline) authorize(ctx context.Context, verb string, t Target, labelSelector, fieldSelector string) error {
	a := request.Attributes{
		User:          request.UserFrom(ctx),
		Verb:          verb,
		Resource:      t.Resource,
		Subresource:   t.Subresource,
		Namespace:     t.Namespace,
		Name:          t.Name,
		LabelSelector: labelSelector,
		FieldSelector: fieldSelector,
	}
	if t.Resource.Group == "" && t.Resource.Resource == "namespaces" {
		a.Namespace = t.Name // as in Kubernetes' request info
	}
	return p.decide(ctx, &a)
}

func (p *Pipeline) decide(ctx context.Context, a *request.Attributes) error {
	if p.cfg.Authorizer == nil {
		return nil
	}
	allowed, reason, err := p.cfg.Authorizer.Authorize(ctx, a)
	if allowed {
		return nil
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.cfg.Log.ErrorContext(ctx, "authorization failed", "error", err)
		if reason == "" {
			reason = err.Error()
		}
	}
	message := forbidden(a)
	if reason != "" {
		message += ": " + reason
	}
	return apierrors.NewForbidden(a.Resource.GroupResource(), a.Name, errors.New(message))
}

// forbidden returns Kubernetes' message for a refused request.
func forbidden(a *request.Attributes) string {
	if !a.IsResource() {
		return fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	}
	res := a.Resource.Resource
	if a.Subresource != "" {
		res += "/" + a.Subresource
	}
	if a.Namespace != "" {
		return fmt.Sprintf("User %q cannot %s resource %q in API group %q in the namespace %q", a.User.Name, a.Verb, res, a.Resource.Group, a.Namespace)
	}
	return fmt.Sprintf("User %q cannot %s resource %q in API group %q at the cluster scope", a.User.Name, a.Verb, res, a.Resource.Group)
}
