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

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// longest is the longest wait before a token is checked again, because a timer does not
// run while the machine sleeps, and clocks may be set.
const longest = time.Hour

// New returns the controller. Its keys are the Secrets of bootstrap tokens.
func New(s *cluster.Cluster) controller.Controller { return build(s, time.Now) }

func build(s *cluster.Cluster, now func() time.Time) controller.Controller {
	secrets := client.For[*corev1.Secret](s.Client)
	return controller.Controller{
		Name: "token-cleaner", Workers: 1,
		Sources: []controller.Source{controller.Objects(s.BootstrapTokens)},
		Reconcile: func(ctx context.Context, key controller.Key) (controller.Result, error) {
			secret, ok := s.BootstrapTokens.Get(key.Namespace, key.Name)
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
	text := string(secret.Data[cluster.TokenExpiration])
	if text == "" {
		return 0, false
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, true
	}
	return at.Sub(now), true
}
