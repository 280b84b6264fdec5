// Package authn authenticates requests: by a client certificate of the cluster's CA, by a bearer
// token of a service account or of a joining node, or as the anonymous user.
//
// Credentials that cannot be verified are refused with Unauthorized; a request with bad
// credentials is never served as anonymous. The package must never log a token, and never accept
// a credential that it could not check.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/token"
)

// User and group names that authentication itself assigns.
const (
	Anonymous            = "system:anonymous"
	UnauthenticatedGroup = "system:unauthenticated"
	AuthenticatedGroup   = "system:authenticated"
)

// Lookup reads objects, for example those that a token is bound to and that must still exist.
type Lookup interface {
	// GetFresh reads an object consistently.
	GetFresh(ctx context.Context, group, resource, namespace, name string) (resource.Object, bool, error)
	// Get reads an object from this process's cache, at no cost to the store.
	Get(group, resource, namespace, name string) (resource.Object, bool)
}

// Config configures an Authenticator. Roots, Tokens and Lookup are required.
type Config struct {
	// Roots returns the cluster's current CAs.
	Roots  func() *x509.CertPool
	Tokens *token.Issuer
	Lookup Lookup
	// NoAnonymous refuses requests without credentials.
	NoAnonymous bool
	Now         func() time.Time
}

// Authenticator authenticates requests.
type Authenticator struct {
	cfg          Config
	certificates *cache[certificate]
	tokens       *cache[verified]
	guesses      *rate.Limiter
}

const (
	// cached is how long a verified credential is accepted without verifying it again. A token
	// therefore outlives the pod that it is bound to by at most this time.
	cached = 10 * time.Second
	// cacheSize bounds the number of cached certificates, and of cached tokens.
	cacheSize = 8192
)

// New returns an Authenticator.
func New(cfg Config) *Authenticator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authenticator{cfg: cfg, certificates: newCache[certificate](cacheSize), tokens: newCache[verified](cacheSize), guesses: rate.NewLimiter(guessRate, guessBurst)}
}

// Authenticate returns the user that a request is made by. peer is the certificate chain from the
// client's TLS handshake, which has proven only that the client holds the leaf's key; bearer is
// its token. Either may be empty. A certificate that verifies takes precedence over a token. The
// error is Unauthorized, or ctx's.
func (a *Authenticator) Authenticate(ctx context.Context, peer []*x509.Certificate, bearer string) (request.User, error) {
	var refused error
	if len(peer) > 0 {
		u, err := a.certificate(peer)
		if err == nil {
			return Authenticated(u), nil
		}
		refused = err
	}
	if bearer != "" {
		u, _, err := a.Token(ctx, bearer, a.cfg.Tokens.Audiences())
		switch {
		case err == nil:
			return Authenticated(u), nil
		case ctx.Err() != nil:
			return request.User{}, ctx.Err()
		case refused == nil:
			refused = err
		}
	}
	switch {
	case refused != nil:
		slog.DebugContext(ctx, "credentials refused", "error", refused)
		return request.User{}, Unauthorized(refused)
	case a.cfg.NoAnonymous:
		return request.User{}, Unauthorized(errors.New("no credentials given"))
	}
	return request.User{Name: Anonymous, Groups: []string{UnauthenticatedGroup}}, nil
}

// Unauthorized returns the error for credentials that were refused.
func Unauthorized(cause error) *apierrors.StatusError {
	return apierrors.NewUnauthorized("Unauthorized: " + cause.Error())
}

// Audiences returns the audiences of which a token must have at least one: the requested ones, or
// by default the apiserver's own.
func (a *Authenticator) Audiences(asked []string) []string {
	if len(asked) > 0 {
		return asked
	}
	return a.cfg.Tokens.Audiences()
}

// Authenticated adds the group of all authenticated users, except to the anonymous user.
func Authenticated(u request.User) request.User {
	if u.Name == Anonymous || slices.Contains(u.Groups, AuthenticatedGroup) {
		return u
	}
	u.Groups = append(slices.Clip(u.Groups), AuthenticatedGroup)
	return u
}

// verified is a cached token.
type verified struct {
	user      request.User
	audiences []string // those of the token that the caller accepts
}

// Token authenticates a bearer token that is valid for at least one of the audiences, and returns
// the user and the audiences that it is valid for. The error says why the token was refused.
func (a *Authenticator) Token(ctx context.Context, raw string, audiences []string) (request.User, []string, error) {
	key := sha256.Sum256([]byte(strings.Join(audiences, "\x00") + "\x00\x00" + raw))
	now := a.cfg.Now()
	if v, ok := a.tokens.get(key, now); ok {
		return v.user, v.audiences, nil
	}
	var v verified
	var until time.Time
	var err error
	if id, secret, ok := parseBootstrapToken(raw); ok {
		v.user, until, err = a.bootstrapToken(ctx, id, secret)
		v.audiences = intersection(audiences, a.cfg.Tokens.Audiences())
	} else {
		v.user, v.audiences, until, err = a.serviceAccountToken(ctx, raw, audiences)
	}
	if err != nil {
		return request.User{}, nil, err
	}
	if len(audiences) > 0 && len(v.audiences) == 0 {
		return request.User{}, nil, errors.New("token is for another audience")
	}
	v.user.Expires, v.user.Credential = until, &bearer{a: a, raw: raw, audiences: audiences}
	limit := now.Add(cached)
	if !until.IsZero() && until.Before(limit) {
		limit = until
	}
	a.tokens.put(key, v, limit)
	return v.user, v.audiences, nil
}

// errUnchecked is returned for a token that may be valid but could not be checked.
var errUnchecked = errors.New("token cannot be checked")

// bearer is an accepted token.
type bearer struct {
	a         *Authenticator
	raw       string
	audiences []string
}

// Valid implements request.Credential. It notices a withdrawn token once the cached result has
// expired.
func (b *bearer) Valid(ctx context.Context) bool {
	_, _, err := b.a.Token(ctx, b.raw, b.audiences)
	return err == nil || errors.Is(err, errUnchecked) || ctx.Err() != nil
}

// String hides the token from formatted users.
func (b *bearer) String() string { return "bearer token" }

func intersection(a, b []string) (both []string) {
	for _, s := range a {
		if slices.Contains(b, s) {
			both = append(both, s)
		}
	}
	return both
}
