package rest

import (
	"context"
	"strings"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/front/rest/route"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// attributes returns what the request asks for.
func (x *exchange) attributes() *request.Attributes {
	if x.path.Form != route.Resource {
		return &request.Attributes{Verb: strings.ToLower(x.r.Method), Path: x.r.URL.Path}
	}
	t := x.target()
	return &request.Attributes{
		Verb: x.verbOfResource(route.ParseQuery(x.r.URL.RawQuery).Watch), Resource: t.Resource, Subresource: t.Subresource, Namespace: t.Namespace, Name: t.Name,
	}
}

// impersonate lets a user act as another, if the pipeline allows each part of it.
func (x *exchange) impersonate() bool {
	user := request.UserFrom(x.ctx)
	as, err := authn.Impersonate(x.ctx, rights{x.h.api}, user, x.r.Header, x.attributes, true)
	if err != nil {
		x.fail(err)
		return false
	}
	if as.Name != user.Name || len(x.r.Header["Impersonate-User"]) > 0 {
		x.ctx = request.WithUser(x.ctx, as)
	}
	return true
}

// rights implements authz.Authorizer with the pipeline.
type rights struct{ api pipeline.API }

func (r rights) Authorize(ctx context.Context, a *request.Attributes) (bool, string, error) {
	if !a.IsResource() {
		err := r.api.AuthorizePath(request.WithUser(ctx, a.User), a.Verb, a.Path)
		return err == nil, "", nil
	}
	err := r.api.Authorize(request.WithUser(ctx, a.User), a.Verb, pipeline.Target{
		Resource: a.Resource, Subresource: a.Subresource, Namespace: a.Namespace, Name: a.Name,
	})
	return err == nil, "", nil
}
