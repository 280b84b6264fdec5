package grpc

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/rpc"
)

// Authenticator authenticates callers.
type Authenticator interface {
	// Authenticate returns the user of a connection's certificates, which are not verified yet,
	// or of a bearer token. Both may be empty. An error results in Unauthenticated.
	Authenticate(ctx context.Context, certs []*x509.Certificate, token string) (request.User, error)
}

const (
	// openService is a service that any client may call, without authentication.
	openService = "/grpc.health.v1.Health/"
	// objectService is, with podService, the service whose every use the pipeline authorizes.
	objectService = "/keelson.resource.v1.ResourceService/"
	// knownServices is a prefix of services that every authenticated user may call.
	knownServices = "/grpc.reflection."
)

// Authentication returns a function that adds the user, and the epoch that its writes depend on,
// to the context. Callers may act as other users with the metadata keys impersonate-…, if rights
// allows it. How many calls they may have in progress depends on their own identity.
func Authentication(a Authenticator, rights authz.Authorizer) rpc.Authenticate {
	return func(ctx context.Context, method string) (context.Context, rpc.Caller, error) {
		if strings.HasPrefix(method, openService) {
			return ctx, rpc.Caller{}, nil
		}
		user, err := authenticate(ctx, a)
		if err != nil {
			return ctx, rpc.Caller{}, wire(ctx, err)
		}
		caller := rpc.Caller{Name: user.Name, Class: class(user)}
		if strings.HasPrefix(method, knownServices) && caller.Class == rpc.Stranger {
			return ctx, caller, wire(ctx, authn.Unauthorized(errors.New("reflection is for authenticated users")))
		}
		if md, ok := metadata.FromIncomingContext(ctx); ok {
			// The other services know users by name, and do not ask the authorizer about each use.
			constrained := strings.HasPrefix(method, objectService) || strings.HasPrefix(method, podService)
			if user, err = authn.Impersonate(ctx, rights, user, md, nil, constrained); err != nil {
				return ctx, caller, wire(ctx, err)
			}
		}
		ctx, err = withFence(request.WithUser(ctx, user))
		return ctx, caller, wire(ctx, err)
	}
}

// class returns the class that bounds how many calls a user may have in progress. Nodes and the
// control plane are recognized by names and groups that no account in the cluster can have.
func class(u request.User) rpc.Class {
	switch {
	case !slices.Contains(u.Groups, authn.AuthenticatedGroup):
		return rpc.Stranger
	case slices.Contains(u.Groups, "system:nodes"), slices.Contains(u.Groups, "system:masters"):
		return rpc.System
	case strings.HasPrefix(u.Name, "system:") && !strings.HasPrefix(u.Name, "system:serviceaccount:") && !strings.HasPrefix(u.Name, "system:bootstrap:"):
		return rpc.System
	}
	return rpc.User
}

// authenticate returns the caller's user.
func authenticate(ctx context.Context, a Authenticator) (request.User, error) {
	var certs []*x509.Certificate
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			certs = info.State.PeerCertificates
		}
	}
	token, given := bearer(ctx)
	if given && token == "" && len(certs) == 0 {
		// A caller that tried to authenticate must not be served as anonymous.
		return request.User{}, authn.Unauthorized(errors.New(`the metadata "authorization" contains no token: want "Bearer TOKEN"`))
	}
	user, err := a.Authenticate(ctx, certs, token)
	if err != nil && ctx.Err() == nil {
		var se *apierrors.StatusError
		if !errors.As(err, &se) {
			err = apierrors.NewUnauthorized(err.Error())
		}
	}
	return user, err
}

// bearer returns the token in the metadata key authorization. given reports whether the key
// exists.
func bearer(ctx context.Context) (token string, given bool) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	for _, v := range values {
		scheme, token, ok := strings.Cut(v, " ")
		if ok && strings.EqualFold(scheme, "bearer") {
			return strings.TrimSpace(token), true
		}
	}
	return "", len(values) > 0
}
