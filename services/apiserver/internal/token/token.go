// Package token issues and verifies service-account tokens: JSON Web Tokens that
// are bound to a service account, an audience, a time, and often to a pod, a
// secret or a node (KEP-1205, KEP-4193). It also reads the older tokens that lie
// in Secrets, and publishes the keys (KEP-1393).
//
// It verifies signatures, times and claims; whether the objects that a token is
// bound to still exist is for package authn. It must never log a token or a
// private key, nor accept an algorithm that its keys are not of.
package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/uuid"

	"keelson.dev/services/apiserver/internal/request"
)

// legacyIssuer is the issuer of tokens in Secrets of type
// kubernetes.io/service-account-token.
const legacyIssuer = "kubernetes/serviceaccount"

// maxSize bounds a token that is looked at: ours are about a kilobyte.
const maxSize = 16 << 10

// leeway is how far the clocks of apiservers may be apart.
const leeway = time.Minute

// The errors of a token that cannot be used.
var (
	// ErrForeign: it is no token of this issuer, or its signature is not ours.
	ErrForeign = errors.New("token was not issued by this cluster")
	// ErrExpired, ErrNotYetValid: it is ours, at another time.
	ErrExpired     = errors.New("token has expired")
	ErrNotYetValid = errors.New("token is not valid yet")
	// ErrMalformed: it is signed by us, but its claims make no sense.
	ErrMalformed = errors.New("token has invalid claims")
)

// Ref is an object that a token is bound to.
type Ref struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// Claims are what a token says.
type Claims struct {
	// ID is the token's own; it is set by Sign.
	ID       string
	Audience []string
	IssuedAt time.Time
	// Expiry is zero for a token in a Secret.
	Expiry            time.Time
	Namespace         string
	ServiceAccount    Ref
	Pod, Secret, Node *Ref
	// Legacy marks a token that lies in a Secret (which Secret names).
	Legacy bool
}

// private are the claims beside those of RFC 7519.
type private struct {
	Kubernetes *bound `json:"kubernetes.io,omitempty"`
	// Those of a token in a Secret.
	LegacyName      string `json:"kubernetes.io/serviceaccount/service-account.name,omitempty"`
	LegacyUID       string `json:"kubernetes.io/serviceaccount/service-account.uid,omitempty"`
	LegacySecret    string `json:"kubernetes.io/serviceaccount/secret.name,omitempty"`
	LegacyNamespace string `json:"kubernetes.io/serviceaccount/namespace,omitempty"`
}

type bound struct {
	Namespace      string `json:"namespace,omitempty"`
	ServiceAccount Ref    `json:"serviceaccount"`
	Pod            *Ref   `json:"pod,omitempty"`
	Secret         *Ref   `json:"secret,omitempty"`
	Node           *Ref   `json:"node,omitempty"`
}

// Issuer issues and verifies the tokens of a cluster.
type Issuer struct {
	url       string
	audiences []string
	keys      *Keys
	now       func() time.Time
}

// NewIssuer makes the issuer called url. The audiences are the apiserver's own:
// what a token is for if nothing else is asked for, and one of which a token must
// have to be accepted; none means url.
func NewIssuer(url string, audiences []string, keys *Keys) *Issuer {
	if len(audiences) == 0 {
		audiences = []string{url}
	}
	return &Issuer{url: url, audiences: audiences, keys: keys, now: time.Now}
}

// WithClock is for tests.
func (i *Issuer) WithClock(now func() time.Time) *Issuer {
	i.now = now
	return i
}

// Audiences are the apiserver's own.
func (i *Issuer) Audiences() []string { return i.audiences }

// Sign issues a token for the claims and sets their ID.
func (i *Issuer) Sign(c *Claims) (string, error) {
	c.ID = uuid.NewString()
	registered := jwt.Claims{
		Issuer:    i.url,
		Subject:   request.ServiceAccountUser(c.Namespace, c.ServiceAccount.Name),
		Audience:  c.Audience,
		Expiry:    jwt.NewNumericDate(c.Expiry),
		NotBefore: jwt.NewNumericDate(c.IssuedAt),
		IssuedAt:  jwt.NewNumericDate(c.IssuedAt),
		ID:        c.ID,
	}
	own := private{Kubernetes: &bound{
		Namespace: c.Namespace, ServiceAccount: c.ServiceAccount, Pod: c.Pod, Secret: c.Secret, Node: c.Node,
	}}
	s, err := jwt.Signed(i.keys.signer).Claims(registered).Claims(own).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign token of service account %s/%s: %w", c.Namespace, c.ServiceAccount.Name, err)
	}
	return s, nil
}

// Verify reads a token: who signed it, whether now is its time, and what it says.
// It does not look at the audience.
func (i *Issuer) Verify(raw string) (*Claims, error) {
	if !Looks(raw) {
		return nil, ErrForeign
	}
	parsed, err := jwt.ParseSigned(raw, i.keys.algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return nil, ErrForeign
	}
	var registered jwt.Claims
	var own private
	if err := parsed.UnsafeClaimsWithoutVerification(&registered); err != nil ||
		registered.Issuer != i.url && registered.Issuer != legacyIssuer {
		return nil, ErrForeign // not worth the price of checking a signature
	}
	if !i.keys.verify(parsed, &registered, &own) {
		return nil, ErrForeign
	}
	now := i.now()
	switch err := registered.ValidateWithLeeway(jwt.Expected{Time: now}, leeway); {
	case err == nil:
	case errors.Is(err, jwt.ErrExpired):
		return nil, ErrExpired
	default:
		return nil, ErrNotYetValid
	}
	c := &Claims{ID: registered.ID, Audience: registered.Audience, IssuedAt: registered.IssuedAt.Time(), Expiry: registered.Expiry.Time()}
	if registered.Expiry == nil {
		c.Expiry = time.Time{}
	}
	if registered.Issuer == legacyIssuer {
		c.Legacy = true
		c.Audience = i.audiences
		c.Namespace = own.LegacyNamespace
		c.ServiceAccount = Ref{own.LegacyName, own.LegacyUID}
		c.Secret = &Ref{Name: own.LegacySecret}
		if own.LegacySecret == "" {
			return nil, fmt.Errorf("%w: no secret", ErrMalformed)
		}
	} else {
		if own.Kubernetes == nil || registered.Expiry == nil {
			return nil, fmt.Errorf("%w: not a bound token", ErrMalformed)
		}
		k := own.Kubernetes
		c.Namespace, c.ServiceAccount, c.Pod, c.Secret, c.Node = k.Namespace, k.ServiceAccount, k.Pod, k.Secret, k.Node
	}
	if c.Namespace == "" || c.ServiceAccount.Name == "" || c.ServiceAccount.UID == "" {
		return nil, fmt.Errorf("%w: no service account", ErrMalformed)
	}
	if registered.Subject != request.ServiceAccountUser(c.Namespace, c.ServiceAccount.Name) {
		return nil, fmt.Errorf("%w: the subject is another", ErrMalformed)
	}
	return c, nil
}

// Looks tells whether a bearer token has the form of a JSON Web Token.
func Looks(raw string) bool {
	return len(raw) <= maxSize && strings.Count(raw, ".") == 2
}

// SignLegacy issues a token to lie in a Secret: it has no end of its own and holds
// as long as the Secret and the service account do.
func (i *Issuer) SignLegacy(namespace, secret string, account Ref) (string, error) {
	return jwt.Signed(i.keys.signer).Claims(jwt.Claims{
		Issuer: legacyIssuer, Subject: request.ServiceAccountUser(namespace, account.Name),
	}).Claims(private{
		LegacyName: account.Name, LegacyUID: account.UID, LegacySecret: secret, LegacyNamespace: namespace,
	}).Serialize()
}

// The paths of the two documents of OpenID Connect Discovery that let others
// verify tokens.
const (
	ConfigurationPath = "/.well-known/openid-configuration"
	KeySetPath        = "/openid/v1/jwks"
)

// The media types of the two documents.
const (
	ConfigurationType = "application/json"
	KeySetType        = "application/jwk-set+json"
)

// Configuration is the document at ConfigurationPath; base is the apiserver's own
// URL, under which the keys are found.
func (i *Issuer) Configuration(base string) ([]byte, error) {
	algorithms := make([]string, 0, len(i.keys.algorithms))
	for _, a := range i.keys.algorithms {
		algorithms = append(algorithms, string(a))
	}
	return json.Marshal(struct {
		Issuer        string   `json:"issuer"`
		KeySet        string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}{i.url, strings.TrimSuffix(base, "/") + KeySetPath, []string{"id_token"}, []string{"public"}, algorithms})
}

// KeySet is the document at KeySetPath.
func (i *Issuer) KeySet() ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: i.keys.public})
}
