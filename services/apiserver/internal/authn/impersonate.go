package authn

import (
	"context"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
)

// Headers, or gRPC metadata keys, by which a user asks to act as another. Case does not matter.
const (
	impersonateUser  = "impersonate-user"
	impersonateGroup = "impersonate-group"
	impersonateUID   = "impersonate-uid"
	impersonateExtra = "impersonate-extra-"
)

// Impersonation is the identity that a request asks to act as.
type Impersonation struct {
	user, uid string
	groups    []string
	extra     map[string][]string
}

// Impersonating parses the impersonation headers. It returns nil if there are none. The error is
// BadRequest.
func Impersonating(headers map[string][]string) (*Impersonation, error) {
	var i *Impersonation
	for name, values := range headers {
		// The prefix is compared before the name is lower-cased, because nearly no header has it.
		if len(name) < len("impersonate-") || !strings.EqualFold(name[:len("impersonate-")], "impersonate-") || len(values) == 0 {
			continue
		}
		if i == nil {
			i = &Impersonation{extra: make(map[string][]string)}
		}
		switch name = strings.ToLower(name); {
		case name == impersonateUser:
			i.user = values[0]
		case name == impersonateUID:
			i.uid = values[0]
		case name == impersonateGroup:
			i.groups = values
		case strings.HasPrefix(name, impersonateExtra):
			key := name[len(impersonateExtra):]
			if plain, err := url.PathUnescape(key); err == nil {
				key = plain
			}
			i.extra[key] = append(i.extra[key], values...)
		}
	}
	switch {
	case i == nil || i.user == "" && i.uid == "" && len(i.groups) == 0 && len(i.extra) == 0:
		return nil, nil
	case i.user == "":
		return nil, apierrors.NewBadRequest("requested a group, uid or extra without impersonating a user")
	}
	return i, nil
}

// Impersonate returns the user that the request is served as: u, or the identity in the headers
// if u may impersonate each of the user, groups, uid and extras named there. The errors are
// Forbidden and BadRequest.
func Impersonate(ctx context.Context, z authz.Authorizer, u request.User, headers map[string][]string) (request.User, error) {
	i, err := Impersonating(headers)
	if err != nil {
		return request.User{}, err
	}
	if i == nil {
		return u, nil
	}
	if err := i.allowed(ctx, z, u); err != nil {
		return request.User{}, err
	}
	as := request.User{
		Name: i.user, UID: i.uid, Groups: slices.Clone(i.groups), Extra: i.extra, Expires: u.Expires, Credential: u.Credential,
		Impersonation: &impersonator{z: z, user: u, as: i},
	}
	if namespace, _, ok := request.SplitServiceAccountUser(i.user); ok && len(i.groups) == 0 {
		as.Groups = request.ServiceAccountGroups(namespace)
	}
	known, unknown := slices.Contains(as.Groups, AuthenticatedGroup), slices.Contains(as.Groups, UnauthenticatedGroup)
	switch {
	case as.Name == Anonymous && !unknown:
		as.Groups = append(as.Groups, UnauthenticatedGroup)
	case as.Name != Anonymous && !known && !unknown:
		as.Groups = append(as.Groups, AuthenticatedGroup)
	}
	return as, nil
}

// allowed returns nil if u may impersonate each of the user, groups, uid and extras.
func (i *Impersonation) allowed(ctx context.Context, z authz.Authorizer, u request.User) error {
	may := func(a request.Attributes) error {
		a.User, a.Verb = u, "impersonate"
		allowed, reason, err := z.Authorize(ctx, &a)
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || !allowed {
			return authz.Forbidden(&a, reason)
		}
		return nil
	}
	core := func(plural string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Version: "v1", Resource: plural}
	}
	special := func(plural string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: plural}
	}
	asked := request.Attributes{Resource: core("users"), Name: i.user}
	if namespace, name, ok := request.SplitServiceAccountUser(i.user); ok {
		asked = request.Attributes{Resource: core("serviceaccounts"), Namespace: namespace, Name: name}
	}
	if err := may(asked); err != nil {
		return err
	}
	for _, g := range i.groups {
		if err := may(request.Attributes{Resource: core("groups"), Name: g}); err != nil {
			return err
		}
	}
	for key, values := range i.extra {
		for _, v := range values {
			if err := may(request.Attributes{Resource: special("userextras"), Subresource: key, Name: v}); err != nil {
				return err
			}
		}
	}
	if i.uid != "" {
		if err := may(request.Attributes{Resource: special("uids"), Name: i.uid}); err != nil {
			return err
		}
	}
	return nil
}

// impersonator is a user's permission to act as another identity.
type impersonator struct {
	z    authz.Authorizer
	user request.User
	as   *Impersonation
}

// Valid implements request.Credential.
func (i *impersonator) Valid(ctx context.Context) bool {
	return !apierrors.IsForbidden(i.as.allowed(ctx, i.z, i.user))
}
