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
	// maxTokenAge is the age at which a token is renewed, however long it is valid.
	maxTokenAge = 24 * time.Hour
	// defaultTokenLife is the lifetime, in seconds, of a token without expirationSeconds.
	defaultTokenLife = int64(3600)
)

// tokenCache caches the service account tokens of pods. A token is renewed after four
// fifths of its lifetime, and after maxTokenAge at the latest. If the renewal fails, the old
// token is used until it expires.
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

// next returns when the first of a pod's tokens must be renewed. It is zero if the pod has
// none.
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
