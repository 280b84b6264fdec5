// Package tokensecret fills Secrets of type kubernetes.io/service-account-token
// with a token, the cluster's CA and their namespace, and deletes them when their
// service account goes.
//
// It must never replace a token that is there, nor log one.
package tokensecret

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	TokenSecrets    *client.Cache[*corev1.Secret]
	ServiceAccounts *client.Cache[*corev1.ServiceAccount]

	secrets  client.Resource[*corev1.Secret]
	accounts client.Resource[*corev1.ServiceAccount]
	signer   *Signer
	ca       func() []byte
}

// byAccount finds secrets by the "namespace/name" of their account.
const byAccount = "account"

// slim keeps whether a secret has a token, but not the token. Such secrets are written by
// patch.
func slim(s *corev1.Secret) *corev1.Secret {
	s.ManagedFields = nil
	if len(s.Data[corev1.ServiceAccountTokenKey]) > 0 {
		s.Data[corev1.ServiceAccountTokenKey] = []byte("set")
	}
	return s
}

// New returns the controller. Its keys are secrets. Without a signer it only deletes.
func New(s *cluster.Cluster, signer *Signer, ca func() []byte) controller.Controller {
	r := &reconciler{
		Cluster: s, ServiceAccounts: cluster.Of[*corev1.ServiceAccount](s),
		TokenSecrets: cluster.Select(s, cluster.Selection[*corev1.Secret]{FieldSelector: "type=" + string(corev1.SecretTypeServiceAccountToken), Transform: slim}),
		secrets:      client.For[*corev1.Secret](s.Client), accounts: client.For[*corev1.ServiceAccount](s.Client),
		signer: signer, ca: ca,
	}
	r.TokenSecrets.AddIndex(byAccount, func(s *corev1.Secret) []string {
		return []string{s.Namespace + "/" + s.Annotations[corev1.ServiceAccountNameKey]}
	})
	return controller.Controller{
		Name: "tokensecret", Reconcile: r.reconcile,
		Sources: []controller.Source{
			controller.Objects(r.TokenSecrets),
			controller.From(r.ServiceAccounts, func(ev client.Event[*corev1.ServiceAccount]) []controller.Key {
				var keys []controller.Key
				for _, secret := range r.TokenSecrets.ByIndex(byAccount, client.KeyOf(ev.Object).String()) {
					keys = append(keys, client.KeyOf(secret))
				}
				return keys
			}),
		},
	}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	secret, ok := r.TokenSecrets.Get(key.Namespace, key.Name)
	if !ok || secret.DeletionTimestamp != nil {
		return controller.Result{}, nil
	}
	name := secret.Annotations[corev1.ServiceAccountNameKey]
	account, ok := r.ServiceAccounts.Get(secret.Namespace, name)
	if !ok || belongsToAnother(secret, account) {
		// The cache of accounts may be behind that of secrets.
		var err error
		account, err = r.accounts.Get(ctx, secret.Namespace, name)
		if apierrors.IsNotFound(err) || err == nil && belongsToAnother(secret, account) {
			return controller.Result{}, r.remove(ctx, secret)
		}
		if err != nil {
			return controller.Result{}, err
		}
	}
	if r.signer == nil || account.DeletionTimestamp != nil {
		return controller.Result{}, nil
	}
	return controller.Result{}, r.fill(ctx, secret, account)
}

// belongsToAnother reports whether a secret belongs to an earlier account of the same name.
func belongsToAnother(secret *corev1.Secret, account *corev1.ServiceAccount) bool {
	uid := secret.Annotations[corev1.ServiceAccountUIDKey]
	return uid != "" && uid != string(account.UID)
}

func (r *reconciler) remove(ctx context.Context, secret *corev1.Secret) error {
	err := r.secrets.Delete(ctx, secret.Namespace, secret.Name, client.UID(secret.UID), client.ResourceVersion(secret.ResourceVersion))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// fill writes what is missing. The cache records whether there is a token, but not its
// value.
func (r *reconciler) fill(ctx context.Context, secret *corev1.Secret, account *corev1.ServiceAccount) error {
	data := map[string][]byte{}
	if len(secret.Data[corev1.ServiceAccountTokenKey]) == 0 {
		token, err := r.signer.sign(account, secret.Name)
		if err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		data[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	if ca := r.ca(); !bytes.Equal(secret.Data[corev1.ServiceAccountRootCAKey], ca) {
		data[corev1.ServiceAccountRootCAKey] = ca
	}
	if string(secret.Data[corev1.ServiceAccountNamespaceKey]) != secret.Namespace {
		data[corev1.ServiceAccountNamespaceKey] = []byte(secret.Namespace)
	}
	if len(data) == 0 && secret.Annotations[corev1.ServiceAccountUIDKey] == string(account.UID) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{
			"uid": secret.UID, "resourceVersion": secret.ResourceVersion,
			"annotations": map[string]string{corev1.ServiceAccountUIDKey: string(account.UID)},
		},
		"data": data,
	})
	if err != nil {
		return err
	}
	if _, err := r.secrets.Patch(ctx, secret.Namespace, secret.Name, types.MergePatchType, patch); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
