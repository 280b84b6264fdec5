package authn

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/token"
)

// Extras of a service account's user (KEP-4193).
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
	extraNodeUID  = "authentication.kubernetes.io/node-uid"
)

// invalidSince marks the Secret of a token that has not been used for a long time.
const invalidSince = "kubernetes.io/legacy-token-invalid-since"

// deletionGrace is how long after its deletionTimestamp an object still counts. A pod needs its
// token while it terminates; within its grace period, the deletionTimestamp is in the future.
const deletionGrace = time.Minute

var errInvalidToken = errors.New("invalid bearer token")

// serviceAccountToken verifies a token and returns the service account's user.
func (a *Authenticator) serviceAccountToken(ctx context.Context, raw string, audiences []string) (u request.User, matching []string, until time.Time, err error) {
	c, err := a.cfg.Tokens.Verify(raw)
	if err != nil {
		if errors.Is(err, token.ErrForeign) {
			err = errInvalidToken
		}
		return u, nil, until, err
	}
	matching = intersection(audiences, c.Audience)
	if len(audiences) > 0 && len(matching) == 0 {
		return u, nil, until, errors.New("token is for another audience")
	}
	if err := a.stillBound(ctx, c, raw); err != nil {
		return u, nil, until, err
	}
	u = request.User{
		Name:   request.ServiceAccountUser(c.Namespace, c.ServiceAccount.Name),
		UID:    c.ServiceAccount.UID,
		Groups: request.ServiceAccountGroups(c.Namespace),
		Extra:  make(map[string][]string),
	}
	extra := func(key, value string) {
		if value != "" {
			u.Extra[key] = []string{value}
		}
	}
	if c.ID != "" {
		extra(credentialID, "JTI="+c.ID)
	}
	if c.Pod != nil {
		extra(extraPodName, c.Pod.Name)
		extra(extraPodUID, c.Pod.UID)
	}
	if c.Node != nil {
		extra(extraNodeName, c.Node.Name)
		extra(extraNodeUID, c.Node.UID)
	}
	return u, matching, c.Expiry, nil
}

// stillBound checks that the objects that the token is bound to still exist.
func (a *Authenticator) stillBound(ctx context.Context, c *token.Claims, raw string) error {
	if _, err := a.existing(ctx, "serviceaccounts", c.Namespace, c.ServiceAccount.Name, c.ServiceAccount.UID); err != nil {
		return err
	}
	if c.Secret != nil {
		o, err := a.existing(ctx, "secrets", c.Namespace, c.Secret.Name, c.Secret.UID)
		if err != nil {
			return err
		}
		if c.Legacy {
			secret, _ := o.(*corev1.Secret)
			if secret == nil || subtle.ConstantTimeCompare(secret.Data[corev1.ServiceAccountTokenKey], []byte(raw)) != 1 {
				return errors.New("token is no longer the one in its secret")
			}
			if secret.Labels[invalidSince] != "" {
				return fmt.Errorf("the token in secret %s/%s has been marked invalid", secret.Namespace, secret.Name)
			}
		}
	}
	if c.Pod != nil {
		// The node of a pod's token is informational: only the pod must exist.
		_, err := a.existing(ctx, "pods", c.Namespace, c.Pod.Name, c.Pod.UID)
		return err
	}
	if c.Node != nil {
		_, err := a.existing(ctx, "nodes", "", c.Node.Name, c.Node.UID)
		return err
	}
	return nil
}

// existing reads an object that must exist, have the given uid (if it is not empty) and not have
// been deleted for longer than deletionGrace.
func (a *Authenticator) existing(ctx context.Context, plural, namespace, name, uid string) (resource.Object, error) {
	o, ok, err := a.cfg.Lookup.GetFresh(ctx, "", plural, namespace, name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s cannot be read", errUnchecked, plural)
	case !ok:
		return nil, fmt.Errorf("token has been invalidated: its %s is gone", singular[plural])
	case uid != "" && string(o.GetUID()) != uid:
		return nil, fmt.Errorf("token has been invalidated: its %s has been replaced", singular[plural])
	}
	if d := o.GetDeletionTimestamp(); d != nil && d.Time.Before(a.cfg.Now().Add(-deletionGrace)) {
		return nil, fmt.Errorf("token has been invalidated: its %s was deleted", singular[plural])
	}
	return o, nil
}

var singular = map[string]string{"serviceaccounts": "service account", "secrets": "secret", "pods": "pod", "nodes": "node"}
