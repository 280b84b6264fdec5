// Package authn finds out who asks: from a client certificate of the cluster's CA,
// from a bearer token of a service account or of a joining node, or as nobody.
//
// Whatever cannot be verified is refused with one clear Unauthorized; a request
// is never served as anonymous because its credentials were bad. It must never
// log a token, and never accept what it could not check.
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

// The users and groups that authentication itself gives.
const (
	Anonymous            = "system:anonymous"
	UnauthenticatedGroup = "system:unauthenticated"
	AuthenticatedGroup   = "system:authenticated"
)

// Lookup reads objects consistently: those that a token is bound to must exist
// now.
type Lookup interface {
	GetFresh(ctx context.Context, group, resource, namespace, name string) (resource.Object, bool, error)
	// Get reads what this process has seen of an object: it costs the store nothing.
	Get(group, resource, namespace, name string) (resource.Object, bool)
}

// Config of an Authenticator. Roots, Tokens and Lookup are required.
type Config struct {
	// Roots are the cluster's CAs, as they are now.
	Roots  func() *x509.CertPool
	Tokens *token.Issuer
	Lookup Lookup
	// NoAnonymous refuses requests without credentials.
	NoAnonymous bool
	Now         func() time.Time
}

// Authenticator finds out who asks.
type Authenticator struct {
	cfg          Config
	certificates *cache[certificate]
	tokens       *cache[verified]
	guesses      *rate.Limiter
}

const (
	// cached is how long a verified credential is taken as such without looking
	// again: as long, at most, a token outlives the pod that it is bound to.
	cached = 10 * time.Second
	// cacheSize bounds what is remembered of either kind.
	cacheSize = 8192
)

// New makes an Authenticator.
func New(cfg Config) *Authenticator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authenticator{cfg: cfg, certificates: newCache[certificate](cacheSize), tokens: newCache[verified](cacheSize), guesses: rate.NewLimiter(guessRate, guessBurst)}
}

// Authenticate finds out who asks. peer is the certificate chain that the client
// showed in the TLS handshake, which has proven that he holds its key and nothing
// else; bearer is his token; either may be empty. A certificate that verifies wins
// over a token. The error is Unauthorized, or ctx's.
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
		slog.DebugContext(ctx, "credentials refused", "cause", refused.Error())
		return request.User{}, Unauthorized(refused)
	case a.cfg.NoAnonymous:
		return request.User{}, Unauthorized(errors.New("no credentials given"))
	}
	return request.User{Name: Anonymous, Groups: []string{UnauthenticatedGroup}}, nil
}

// Unauthorized is the answer to credentials that cannot be used.
func Unauthorized(cause error) *apierrors.StatusError {
	return apierrors.NewUnauthorized("Unauthorized: " + cause.Error())
}

// Audiences are those that a token must have one of: what is asked for, or the
// apiserver's own.
func (a *Authenticator) Audiences(asked []string) []string {
	if len(asked) > 0 {
		return asked
	}
	return a.cfg.Tokens.Audiences()
}

// Authenticated adds the group of all who are known.
func Authenticated(u request.User) request.User {
	if u.Name == Anonymous || slices.Contains(u.Groups, AuthenticatedGroup) {
		return u
	}
	u.Groups = append(slices.Clip(u.Groups), AuthenticatedGroup)
	return u
}

// verified is what is known of a token.
type verified struct {
	user      request.User
	audiences []string // of the token that the asker accepts
}

// Token finds out whom a bearer token stands for, if it is meant for one of the
// audiences; it returns those that it is meant for. The error says why the token
// cannot be used.
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
		return request.User{}, nil, errors.New("token is meant for another audience")
	}
	v.user.Expires, v.user.Credential = until, &bearer{a: a, raw: raw, audiences: audiences}
	limit := now.Add(cached)
	if !until.IsZero() && until.Before(limit) {
		limit = until
	}
	a.tokens.put(key, v, limit)
	return v.user, v.audiences, nil
}

// errUnchecked is the refusal of a token that may well be good.
var errUnchecked = errors.New("token cannot be checked")

// bearer is a token that was accepted.
type bearer struct {
	a         *Authenticator
	raw       string
	audiences []string
}

// Valid implements request.Credential. It notices within the time that a verified
// token is remembered.
func (b *bearer) Valid(ctx context.Context) bool {
	_, _, err := b.a.Token(ctx, b.raw, b.audiences)
	return err == nil || errors.Is(err, errUnchecked) || ctx.Err() != nil
}

// String keeps the token out of whatever prints a user.
func (b *bearer) String() string { return "bearer token" }

func intersection(a, b []string) (both []string) {
	for _, s := range a {
		if slices.Contains(b, s) {
			both = append(both, s)
		}
	}
	return both
}
