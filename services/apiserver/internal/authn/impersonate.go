package authn

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

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
// if u may act as it. The errors are Forbidden and BadRequest.
//
// There are two kinds of permission. The verb impersonate on each of the user, groups, uid and
// extras permits everything as that identity. The verb impersonate:MODE on each of them
// permits what impersonate-on:MODE:VERB names (KEP-5284), and is tried first. asked returns what the
// request asks for. If that is not known yet, asked is nil, and the permission for it is checked when
// the returned user is authorized; such permissions then only count if constrained is true.
func Impersonate(ctx context.Context, z authz.Authorizer, u request.User, headers map[string][]string, asked func() *request.Attributes, constrained bool) (request.User, error) {
	i, err := Impersonating(headers)
	if err != nil {
		return request.User{}, err
	}
	if i == nil {
		return u, nil
	}
	var on *request.Attributes
	if asked != nil {
		on = asked()
	}
	if on == nil { // the unconstrained permission spares the later check
		as, err := i.as(ctx, z, u, legacy)
		if err == nil || !constrained || ctx.Err() != nil {
			return as, err
		}
	}
	var first error
	for _, m := range modes {
		if !m.fits(i, u) {
			continue
		}
		if on != nil && m != legacy {
			err = (&constraint{z: z, user: u, mode: m}).Permits(ctx, on)
		}
		if err == nil {
			var as request.User
			if as, err = i.as(ctx, z, u, m); err == nil {
				return as, nil
			}
		}
		if ctx.Err() != nil {
			return request.User{}, ctx.Err()
		}
		if first == nil {
			first = err
		}
		err = nil
	}
	return request.User{}, first
}

// as returns the identity if u may act as it in a mode.
func (i *Impersonation) as(ctx context.Context, z authz.Authorizer, u request.User, m *mode) (request.User, error) {
	if err := i.allowed(ctx, z, u, m); err != nil {
		return request.User{}, err
	}
	as := request.User{
		Name: i.user, UID: i.uid, Groups: slices.Clone(i.groups), Extra: i.extra, Expires: u.Expires, Credential: u.Credential,
		Impersonation: &impersonator{z: z, user: u, as: i, mode: m},
	}
	if m != legacy {
		as.Constraint = &constraint{z: z, user: u, mode: m}
	}
	if m.node {
		as.Groups = []string{nodesGroup}
	} else if namespace, _, ok := request.SplitServiceAccountUser(i.user); ok && len(i.groups) == 0 {
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

const nodesGroup = "system:nodes"

// mode is a kind of permission to act as an identity.
type mode struct {
	name string
	// fits reports whether the mode is about an identity and the user that asks for it.
	fits func(i *Impersonation, u request.User) bool
	// node is true if the identity is that of a node, and own if the permission is for the node that
	// the user's pod runs on, whichever that is.
	node, own bool
}

// modes are the modes in the order in which they are tried, as in Kubernetes.
var modes = []*mode{
	{name: "associated-node", node: true, own: true, fits: func(i *Impersonation, u request.User) bool {
		node, ok := i.node()
		if _, _, account := request.SplitServiceAccountUser(u.Name); !ok || !account {
			return false
		}
		names := u.Extra[nodeNameKey]
		return i.nameOnly() && len(names) == 1 && names[0] == node
	}},
	{name: "arbitrary-node", node: true, fits: func(i *Impersonation, _ request.User) bool {
		_, ok := i.node()
		return ok && i.nameOnly()
	}},
	{name: "serviceaccount", fits: func(i *Impersonation, _ request.User) bool {
		_, _, ok := request.SplitServiceAccountUser(i.user)
		return ok && i.nameOnly()
	}},
	{name: "user-info", fits: func(i *Impersonation, _ request.User) bool {
		_, node := i.node()
		_, _, account := request.SplitServiceAccountUser(i.user)
		return !node && !account
	}},
	legacy,
}

// legacy is the mode without constraints.
var legacy = &mode{fits: func(*Impersonation, request.User) bool { return true }}

// nodeNameKey is the extra of a service account that names the node of its pod.
const nodeNameKey = "authentication.kubernetes.io/node-name"

// verb returns the verb on the parts of the identity.
func (m *mode) verb() string {
	if m == legacy {
		return "impersonate"
	}
	return "impersonate:" + m.name
}

// nameOnly reports whether the request names nothing but the user.
func (i *Impersonation) nameOnly() bool { return i.uid == "" && len(i.groups)+len(i.extra) == 0 }

// node returns the node that the user's name is that of.
func (i *Impersonation) node() (string, bool) {
	name, ok := strings.CutPrefix(i.user, "system:node:")
	return name, ok && validation.NameIsDNSSubdomain(name, false) == nil
}

// many is the number of groups or extras from which on a permission for all is tried first.
const many = 4

// allowed returns nil if u may act as each of the user, groups, uid and extras in a mode.
func (i *Impersonation) allowed(ctx context.Context, z authz.Authorizer, u request.User, m *mode) error {
	c := &checker{ctx: ctx, z: z, user: u, verb: m.verb()}
	identities := schema.GroupVersion{Version: "v1"}
	if m != legacy {
		identities.Group = special.Group
	}
	asked := request.Attributes{Resource: identities.WithResource("users"), Name: i.user}
	if namespace, name, ok := request.SplitServiceAccountUser(i.user); ok {
		asked = request.Attributes{Resource: identities.WithResource("serviceaccounts"), Namespace: namespace, Name: name}
	}
	if m.node {
		asked = request.Attributes{Resource: identities.WithResource("nodes"), Name: strings.TrimPrefix(i.user, "system:node:")}
		if m.own {
			asked.Name = "*"
		}
	}
	c.may(asked)
	if i.uid != "" {
		c.may(request.Attributes{Resource: special.WithResource("uids"), Name: i.uid})
	}
	i.groupsAllowed(c, identities.WithResource("groups"), m)
	i.extraAllowed(c, m)
	return c.err
}

func (i *Impersonation) groupsAllowed(c *checker, groups schema.GroupVersionResource, m *mode) {
	if m != legacy {
		switch {
		case slices.Contains(i.groups, ""):
			c.refuse(request.Attributes{Resource: groups}, "impersonating the empty string group is not allowed")
		case slices.Contains(i.groups, authz.MastersGroup):
			c.refuse(request.Attributes{Resource: groups, Name: authz.MastersGroup}, "impersonating the system:masters group is not allowed")
		case len(i.groups) >= many && c.allows(request.Attributes{Resource: groups, Name: "*"}):
			return
		}
	}
	for _, g := range i.groups {
		c.may(request.Attributes{Resource: groups, Name: g})
	}
}

func (i *Impersonation) extraAllowed(c *checker, m *mode) {
	extras := special.WithResource("userextras")
	if m != legacy {
		if problem := i.extraProblem(); problem != "" {
			c.refuse(request.Attributes{Resource: extras}, problem)
		}
		count := 0
		for _, values := range i.extra {
			count += len(values)
		}
		if max(count, len(i.extra)) >= many && c.allows(request.Attributes{Resource: extras, Subresource: "*", Name: "*"}) {
			return
		}
	}
	for _, key := range slices.Sorted(maps.Keys(i.extra)) {
		for _, v := range i.extra[key] {
			c.may(request.Attributes{Resource: extras, Subresource: key, Name: v})
		}
	}
}

// extraProblem returns why extras cannot be asked for with a constrained permission, or "".
func (i *Impersonation) extraProblem() string {
	for _, key := range slices.Sorted(maps.Keys(i.extra)) {
		if key == "" {
			return "impersonating the empty string key in extra is not allowed"
		}
		if err := utilvalidation.IsDomainPrefixedPath(field.NewPath("extra", "key"), key).ToAggregate(); err != nil {
			return "impersonating an invalid key in extra is not allowed: " + err.Error()
		}
		if key != strings.ToLower(key) {
			return fmt.Sprintf("impersonating a non-lowercase key in extra is not allowed: %q", key)
		}
		if len(i.extra[key]) == 0 {
			return "impersonating empty values in extra is not allowed"
		}
		if slices.Contains(i.extra[key], "") {
			return "impersonating the empty string value in extra is not allowed"
		}
	}
	return ""
}

// special is the group of what only impersonation knows.
var special = schema.GroupVersion{Group: "authentication.k8s.io", Version: "v1"}

// checker authorizes one user's use of one verb, until the first refusal.
type checker struct {
	ctx  context.Context
	z    authz.Authorizer
	user request.User
	verb string
	err  error
}

// may records the refusal of a.
func (c *checker) may(a request.Attributes) {
	if c.err != nil {
		return
	}
	a.User, a.Verb = c.user, c.verb
	c.err = authorize(c.ctx, c.z, &a)
}

// allows reports whether a is allowed, without recording a refusal.
func (c *checker) allows(a request.Attributes) bool {
	a.User, a.Verb = c.user, c.verb
	return c.err == nil && authorize(c.ctx, c.z, &a) == nil
}

func (c *checker) refuse(a request.Attributes, reason string) {
	if a.User, a.Verb = c.user, c.verb; c.err == nil {
		c.err = authz.Forbidden(&a, reason)
	}
}

func authorize(ctx context.Context, z authz.Authorizer, a *request.Attributes) error {
	allowed, reason, err := z.Authorize(ctx, a)
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil || !allowed:
		return authz.Forbidden(a, reason)
	}
	return nil
}

// constraint is what an impersonator may do as another identity.
type constraint struct {
	z    authz.Authorizer
	user request.User
	mode *mode
}

// Permits implements request.Constraint.
func (c *constraint) Permits(ctx context.Context, a *request.Attributes) error {
	on := *a
	on.User, on.Verb = c.user, "impersonate-on:"+c.mode.name+":"+a.Verb
	return authorize(ctx, c.z, &on)
}

// impersonator is a user's permission to act as another identity.
type impersonator struct {
	z    authz.Authorizer
	user request.User
	as   *Impersonation
	mode *mode
}

// Valid implements request.Credential.
func (i *impersonator) Valid(ctx context.Context) bool {
	return !apierrors.IsForbidden(i.as.allowed(ctx, i.z, i.user, i.mode))
}
