// Package token issues and verifies service account tokens: JSON Web Tokens that are bound to a
// service account, an audience and a lifetime, and often to a pod, a secret or a node (KEP-1205,
// KEP-4193). It also verifies the older tokens that are stored in Secrets, and publishes the keys
// (KEP-1393).
//
// It verifies signatures, times and claims; package authn checks whether the objects that a token
// is bound to still exist. It must never log a token or a private key, nor accept an algorithm
// other than those of its keys.
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

// legacyIssuer is the issuer of tokens in Secrets of type kubernetes.io/service-account-token.
const legacyIssuer = "kubernetes/serviceaccount"

// maxSize is the largest token that is parsed, in bytes. Issued tokens have about a kilobyte.
const maxSize = 16 << 10

// leeway is how far the clocks of two apiservers may differ.
const leeway = time.Minute

// Errors of tokens that are refused.
var (
	// ErrForeign: this cluster did not issue the token, or the signature is invalid.
	ErrForeign = errors.New("token was not issued by this cluster")
	// ErrExpired, ErrNotYetValid: the token is valid at another time.
	ErrExpired     = errors.New("token has expired")
	ErrNotYetValid = errors.New("token is not valid yet")
	// ErrMalformed: the token is signed by this cluster, but its claims are invalid.
	ErrMalformed = errors.New("token has invalid claims")
)

// Ref refers to an object that a token is bound to.
type Ref struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// Claims are the claims of a token.
type Claims struct {
	// ID is the id of the token. Sign sets it.
	ID       string
	Audience []string
	IssuedAt time.Time
	// Expiry is zero for a token in a Secret.
	Expiry            time.Time
	Namespace         string
	ServiceAccount    Ref
	Pod, Secret, Node *Ref
	// Legacy is true for a token that is stored in the Secret that Secret names.
	Legacy bool
}

// private are the claims that RFC 7519 does not define.
type private struct {
	Kubernetes *bound `json:"kubernetes.io,omitempty"`
	// Claims of a token in a Secret.
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

// NewIssuer returns the issuer with the given url. The audiences are the apiserver's own: the
// default audiences of a requested token, and those of which a token needs at least one to be
// accepted. If there are none, url is the audience.
func NewIssuer(url string, audiences []string, keys *Keys) *Issuer {
	if len(audiences) == 0 {
		audiences = []string{url}
	}
	return &Issuer{url: url, audiences: audiences, keys: keys, now: time.Now}
}

// WithClock sets the clock, for tests.
func (i *Issuer) WithClock(now func() time.Time) *Issuer {
	i.now = now
	return i
}

// Audiences returns the apiserver's own audiences.
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

// Verify checks the signature, the times and the claims of a token, and returns the claims. It
// does not check the audience.
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
		return nil, ErrForeign // avoids the cost of verifying the signature
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
		return nil, fmt.Errorf("%w: the subject does not match", ErrMalformed)
	}
	return c, nil
}

// Looks reports whether a bearer token has the form of a JSON Web Token.
func Looks(raw string) bool {
	return len(raw) <= maxSize && strings.Count(raw, ".") == 2
}

// SignLegacy issues a token to be stored in a Secret. It does not expire, and is valid as long as
// the Secret and the service account exist.
func (i *Issuer) SignLegacy(namespace, secret string, account Ref) (string, error) {
	return jwt.Signed(i.keys.signer).Claims(jwt.Claims{
		Issuer: legacyIssuer, Subject: request.ServiceAccountUser(namespace, account.Name),
	}).Claims(private{
		LegacyName: account.Name, LegacyUID: account.UID, LegacySecret: secret, LegacyNamespace: namespace,
	}).Serialize()
}

// Paths of the two documents of OpenID Connect Discovery, with which other parties verify tokens.
const (
	ConfigurationPath = "/.well-known/openid-configuration"
	KeySetPath        = "/openid/v1/jwks"
)

// Media types of the two documents.
const (
	ConfigurationType = "application/json"
	KeySetType        = "application/jwk-set+json"
)

// Configuration returns the document at ConfigurationPath. base is the apiserver's own URL, under
// which the keys are served.
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

// KeySet returns the document at KeySetPath.
func (i *Issuer) KeySet() ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: i.keys.public})
}
