package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// nodeAdmit makes a token that lies in a file good for a while.
func (e *env) nodeAdmit() *cobra.Command {
	var pki string
	var apiservers []string
	var ttl, wait time.Duration
	cmd := &cobra.Command{
		Use:   "admit",
		Short: "Let nodes join with the token that `keel pki` made",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := os.ReadFile(filepath.Join(pki, "bootstrap-token"))
			if err != nil {
				return err
			}
			token := strings.TrimSpace(string(data))
			if !tokenForm.MatchString(token) {
				return fmt.Errorf("%s/bootstrap-token does not hold a token", pki)
			}
			conn, err := dialAt(pki, apiservers)
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			secrets := client.For[*corev1.Secret](client.New(conn, "keel"))
			for {
				err := admit(ctx, secrets, token, time.Now().Add(ttl))
				if err == nil {
					e.say("nodes may join for %s", ttl)
					return nil
				}
				select {
				case <-ctx.Done():
					return errors.Join(err, ctx.Err())
				case <-time.After(200 * time.Millisecond):
				}
			}
		},
	}
	f := cmd.Flags()
	f.StringVar(&pki, "pki", "/pki", "directory with the administrator's identity and bootstrap-token")
	f.StringSliceVar(&apiservers, "apiserver", nil, "host:port of the apiservers' gRPC ports")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "how long nodes may join")
	f.DurationVar(&wait, "wait", 5*time.Minute, "how long to wait for the apiservers")
	if err := cmd.MarkFlagRequired("apiserver"); err != nil {
		panic(err)
	}
	return cmd
}

// admit creates the token's Secret, or prolongs it.
func admit(ctx context.Context, secrets client.Resource[*corev1.Secret], token string, until time.Time) error {
	secret := bootstrapSecret(token, until, nodeJoiners, "made by keel node admit")
	_, err := secrets.Create(ctx, secret)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	have, err := secrets.Get(ctx, secret.Namespace, secret.Name)
	if err != nil {
		return err
	}
	secret.ResourceVersion = have.ResourceVersion
	_, err = secrets.Update(ctx, secret)
	return err
}

// bootstrapSecret is how a cluster knows a token ("id.secret"), whose bearers are in
// a group.
func bootstrapSecret(token string, until time.Time, group, why string) *corev1.Secret {
	id, secret, _ := strings.Cut(token, ".")
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "bootstrap-token-" + id},
		Type:       corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			"token-id": id, "token-secret": secret,
			"expiration":                     until.UTC().Format(time.RFC3339),
			"usage-bootstrap-authentication": "true",
			"auth-extra-groups":              group,
			"description":                    why,
		},
	}
}
