// Package tokencleaner deletes the Secrets of bootstrap tokens that have expired, as
// Kubernetes' controller of that name does. A token whose expiration cannot be read is
// not accepted by the apiserver and counts as expired; one without an expiration stays.
//
// It must never delete a Secret that was changed since it was looked at: its token may
// have been extended.
package tokencleaner

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// longest is the longest wait before a token is checked again, because a timer does not
// run while the machine sleeps, and clocks may be set.
const longest = time.Hour

// expirationKey is the key of a bootstrap token's Secret that holds its expiration time.
const expirationKey = "expiration"

// selection selects the Secrets of bootstrap tokens. Of their data only the expiration is
// cached, and nothing of the token itself.
var selection = cluster.Selection[*corev1.Secret]{
	Namespace: metav1.NamespaceSystem, FieldSelector: "type=" + string(corev1.SecretTypeBootstrapToken), Transform: slim,
}

func slim(s *corev1.Secret) *corev1.Secret {
	s.ManagedFields = nil
	expiration, ok := s.Data[expirationKey]
	s.Data = nil
	if ok {
		s.Data = map[string][]byte{expirationKey: expiration}
	}
	return s
}

// New returns the controller. Its keys are the Secrets of bootstrap tokens.
func New(s *cluster.Cluster) controller.Controller { return build(s, time.Now) }

func build(s *cluster.Cluster, now func() time.Time) controller.Controller {
	secrets := client.For[*corev1.Secret](s.Client)
	tokens := cluster.Select(s, selection)
	return controller.Controller{
		Name: "token-cleaner", Workers: 1,
		Sources: []controller.Source{controller.Objects(tokens)},
		Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
			secret, ok := tokens.Get(key.Namespace, key.Name)
			if !ok || secret.DeletionTimestamp != nil {
				return controller.Result{}, nil
			}
			left, expires := Left(secret, now())
			switch {
			case !expires:
				return controller.Result{}, nil
			case left > 0:
				return controller.Result{RequeueAfter: min(left, longest)}, nil
			}
			err := secrets.Delete(ctx, secret.Namespace, secret.Name, client.UID(secret.UID), client.ResourceVersion(secret.ResourceVersion))
			if err != nil && !apierrors.IsNotFound(err) {
				return controller.Result{}, fmt.Errorf("delete expired bootstrap token: secret %s: %w", key, err)
			}
			return controller.Result{}, nil
		},
	}
}

// Left returns how long a bootstrap token is still valid, 0 or less once it has
// expired. It returns false if the token never expires.
func Left(secret *corev1.Secret, now time.Time) (left time.Duration, expires bool) {
	text := string(secret.Data[expirationKey])
	if text == "" {
		return 0, false
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, true
	}
	return at.Sub(now), true
}
