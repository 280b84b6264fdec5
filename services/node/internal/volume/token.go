package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// maxTokenAge is when a token is renewed at the latest.
	maxTokenAge = 24 * time.Hour
	// defaultTokenLife is what a token without expirationSeconds gets.
	defaultTokenLife = int64(3600)
)

// tokenCache holds the tokens of pods' service accounts. A token is renewed when
// four fifths of its life are over; while that fails, the old one serves until
// it expires.
type tokenCache struct {
	objects Objects
	now     func() time.Time

	mu     sync.Mutex
	tokens map[tokenKey]token
}

type tokenKey struct {
	pod      types.UID
	audience string
	seconds  int64
}

type token struct {
	value          string
	renew, expires time.Time
}

func (c *tokenCache) get(ctx context.Context, p *corev1.Pod, source *corev1.ServiceAccountTokenProjection) (string, error) {
	seconds := defaultTokenLife
	if source.ExpirationSeconds != nil {
		seconds = *source.ExpirationSeconds
	}
	key := tokenKey{pod: p.UID, audience: source.Audience, seconds: seconds}
	now := c.now()
	c.mu.Lock()
	have, ok := c.tokens[key]
	c.mu.Unlock()
	if ok && now.Before(have.renew) {
		return have.value, nil
	}
	spec := authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}
	if source.Audience != "" {
		spec.Audiences = []string{source.Audience}
	}
	account := p.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	resp, err := c.objects.Token(ctx, p.Namespace, account, spec)
	if err != nil {
		if ok && now.Before(have.expires) {
			c.mu.Lock()
			have.renew = now.Add(10 * time.Second)
			c.tokens[key] = have
			c.mu.Unlock()
			return have.value, nil
		}
		return "", fmt.Errorf("failed to fetch token: %w", err)
	}
	expires := resp.Status.ExpirationTimestamp.Time
	life := expires.Sub(now)
	fresh := token{value: resp.Status.Token, expires: expires, renew: now.Add(min(life*4/5, maxTokenAge))}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tokens == nil {
		c.tokens = map[tokenKey]token{}
	}
	c.tokens[key] = fresh
	return fresh.value, nil
}

// next is when the first of a pod's tokens is to be renewed.
func (c *tokenCache) next(uid types.UID) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var at time.Time
	for k, t := range c.tokens {
		if k.pod == uid && (at.IsZero() || t.renew.Before(at)) {
			at = t.renew
		}
	}
	return at
}

func (c *tokenCache) forget(uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.tokens {
		if k.pod == uid {
			delete(c.tokens, k)
		}
	}
}
