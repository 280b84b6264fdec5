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

// Authenticator tells who a request comes from.
type Authenticator interface {
	// Authenticate names the caller from the certificates that its connection
	// showed (not verified yet) or its bearer token; both may be empty. An error
	// becomes 401.
	Authenticate(ctx context.Context, certs []*x509.Certificate, token string) (request.User, error)
}

const (
	// openService is the service that anybody may call who can connect.
	openService = "/grpc.health.v1.Health/"
	// knownServices are for those who say who they are, whoever that is.
	knownServices = "/grpc.reflection."
)

// Authentication puts the caller into the context, and the epoch that its writes
// depend on. Callers may act as others by the metadata keys impersonate-…, as far as
// rights allows; what they may have under way depends on who they are themselves.
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
			if user, err = authn.Impersonate(ctx, rights, user, md); err != nil {
				return ctx, caller, wire(ctx, err)
			}
		}
		ctx, err = withFence(request.WithUser(ctx, user))
		return ctx, caller, wire(ctx, err)
	}
}

// class is how much a user may have under way. Nodes and the control plane are known
// by names and groups that no account in the cluster can have.
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

// authenticate determines the caller.
func authenticate(ctx context.Context, a Authenticator) (request.User, error) {
	var certs []*x509.Certificate
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			certs = info.State.PeerCertificates
		}
	}
	token, given := bearer(ctx)
	if given && token == "" && len(certs) == 0 {
		// A caller that meant to authenticate must not be served as anonymous.
		return request.User{}, authn.Unauthorized(errors.New(`the metadata "authorization" holds no token: want "Bearer TOKEN"`))
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

// bearer is the token of the metadata key authorization; given reports whether the key is
// there at all.
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
