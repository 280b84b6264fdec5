package grpc

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/request"
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

// Authentication makes the interceptors that put the caller into the context, and
// the epoch that its writes depend on.
// Callers may act as others by the metadata keys impersonate-…, as far as rights
// allows.
func Authentication(a Authenticator, rights authz.Authorizer) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		ctx, err := authenticate(ctx, a, rights, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		ctx, err := authenticate(ss.Context(), a, rights, info.FullMethod)
		if err != nil {
			return err
		}
		return next(srv, &userStream{ServerStream: ss, ctx: ctx})
	}
	return unary, stream
}

func authenticate(ctx context.Context, a Authenticator, rights authz.Authorizer, method string) (context.Context, error) {
	if strings.HasPrefix(method, openService) {
		return ctx, nil
	}
	var certs []*x509.Certificate
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			certs = info.State.PeerCertificates
		}
	}
	user, err := a.Authenticate(ctx, certs, bearer(ctx))
	if err != nil {
		if ctx.Err() == nil {
			var se *apierrors.StatusError
			if !errors.As(err, &se) {
				err = apierrors.NewUnauthorized(err.Error())
			}
		}
		return ctx, wire(ctx, err)
	}
	if strings.HasPrefix(method, knownServices) && !slices.Contains(user.Groups, authn.AuthenticatedGroup) {
		return ctx, wire(ctx, authn.Unauthorized(errors.New("reflection is for authenticated users")))
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if user, err = authn.Impersonate(ctx, rights, user, md); err != nil {
			return ctx, wire(ctx, err)
		}
	}
	ctx, err = withFence(request.WithUser(ctx, user))
	return ctx, wire(ctx, err)
}

// bearer is the token of the metadata key authorization.
func bearer(ctx context.Context) string {
	for _, v := range metadata.ValueFromIncomingContext(ctx, "authorization") {
		scheme, token, ok := strings.Cut(v, " ")
		if ok && strings.EqualFold(scheme, "bearer") {
			return strings.TrimSpace(token)
		}
	}
	return ""
}

type userStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *userStream) Context() context.Context { return s.ctx }
