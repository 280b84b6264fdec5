package authn

import (
	"context"
	"crypto/subtle"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/identity"
)

// Bootstrap tokens have the form "ID.SECRET"; their Secret is kube-system/bootstrap-token-ID.
// What a token permits follows from the groups that its Secret adds (auth-extra-groups);
// system:bootstrappers alone permits nothing. A token whose Secret has a node-name is for that
// node only.
const (
	bootstrapSecretPrefix = "bootstrap-token-"
	bootstrapSecretType   = "bootstrap.kubernetes.io/token"
	bootstrapUserPrefix   = "system:bootstrap:"
	bootstrapGroup        = "system:bootstrappers"

	bootstrapIDLen, bootstrapSecretLen = 6, 16
)

// extraBootstrapGroup matches the groups that a Secret may add to its token's user.
var extraBootstrapGroup = regexp.MustCompile(`\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`)

// parseBootstrapToken splits raw if it has the form of a bootstrap token.
func parseBootstrapToken(raw string) (id, secret string, ok bool) {
	if len(raw) != bootstrapIDLen+1+bootstrapSecretLen || raw[bootstrapIDLen] != '.' {
		return "", "", false
	}
	id, secret = raw[:bootstrapIDLen], raw[bootstrapIDLen+1:]
	for _, c := range []byte(id + secret) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "", "", false
		}
	}
	return id, secret, true
}

// bootstrapToken returns the user of a bootstrap token. Every refusal returns the same error, so
// that it does not reveal which ids exist.
func (a *Authenticator) bootstrapToken(ctx context.Context, id, secret string) (u request.User, until time.Time, err error) {
	stored, err := a.bootstrapSecret(ctx, bootstrapSecretPrefix+id, secret)
	if err != nil {
		return u, until, fmt.Errorf("%w: secrets cannot be read", errUnchecked)
	}
	text := func(key string) string { return string(stored.Data[key]) }
	same := subtle.ConstantTimeCompare([]byte(text("token-secret")), []byte(secret)) == 1
	until, current := a.bootstrapExpiry(text("expiration"))
	groups, sound := bootstrapGroups(text("auth-extra-groups"))
	if !same || !current || !sound ||
		stored.Type != bootstrapSecretType || stored.DeletionTimestamp != nil ||
		text("token-id") != id || text("usage-bootstrap-authentication") != "true" {
		return u, until, errInvalidToken
	}
	u = request.User{Name: bootstrapUserPrefix + id, Groups: groups}
	if node, ok := stored.Data["node-name"]; ok {
		u.Extra = map[string][]string{identity.BootstrapNode: {string(node)}}
	}
	return u, until, nil
}

// bootstrapSecret reads the Secret of a bootstrap token. If there is none, it returns an empty
// one, so that the caller's comparison takes the same time. It reads from the store for tokens
// that match the cache, because they may have been withdrawn, and at a limited rate for others,
// one of which may be new: any client can make up tokens, and a read of the store involves all
// members.
func (a *Authenticator) bootstrapSecret(ctx context.Context, name, secret string) (*corev1.Secret, error) {
	seen, _ := a.cfg.Lookup.Get("", "secrets", metav1.NamespaceSystem, name)
	stored, _ := seen.(*corev1.Secret)
	if stored == nil {
		stored = &corev1.Secret{}
	}
	if subtle.ConstantTimeCompare(stored.Data["token-secret"], []byte(secret)) != 1 && !a.guesses.AllowN(a.cfg.Now(), 1) {
		return stored, nil
	}
	o, _, err := a.cfg.Lookup.GetFresh(ctx, "", "secrets", metav1.NamespaceSystem, name)
	if err != nil {
		return nil, err
	}
	if stored, _ = o.(*corev1.Secret); stored == nil {
		stored = &corev1.Secret{}
	}
	return stored, nil
}

// guessRate is how many unknown tokens an Authenticator looks up in the store each second, and
// guessBurst how many at once.
const guessRate, guessBurst = 10, 20

// bootstrapExpiry parses a token's expiry (RFC 3339; empty means that it never expires).
func (a *Authenticator) bootstrapExpiry(text string) (until time.Time, current bool) {
	if text == "" {
		return time.Time{}, true
	}
	until, err := time.Parse(time.RFC3339, text)
	return until, err == nil && a.cfg.Now().Before(until)
}

func bootstrapGroups(extra string) (groups []string, sound bool) {
	groups = []string{bootstrapGroup}
	if extra == "" {
		return groups, true
	}
	for _, g := range strings.Split(extra, ",") {
		if !extraBootstrapGroup.MatchString(g) {
			return nil, false
		}
		groups = append(groups, g)
	}
	slices.Sort(groups)
	return slices.Compact(groups), true
}
