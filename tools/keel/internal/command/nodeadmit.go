package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
)

// nodeAdmit lets nodes join that the cluster does not have yet. The token of each node is in a
// file with its name.
func (e *env) nodeAdmit() *cobra.Command {
	var pki string
	var apiservers []string
	var ttl, wait time.Duration
	cmd := &cobra.Command{
		Use:   "admit",
		Short: "Let nodes join with the tokens created by `keel pki`, each once",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tokens, err := readTokens(filepath.Join(pki, "tokens"))
			if err != nil {
				return err
			}
			conn, err := dialAt(pki, apiservers)
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			c := client.New(conn, "keel")
			a := admission{secrets: client.For[*corev1.Secret](c), nodes: client.For[*corev1.Node](c)}
			for {
				admitted, err := a.admit(ctx, tokens, time.Now().Add(ttl))
				if err == nil {
					if len(admitted) > 0 {
						e.say("admitted for %s: %s", ttl, strings.Join(admitted, ", "))
					}
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
	f.StringVar(&pki, "pki", "/pki", "`directory` with the administrator's identity and the nodes' tokens, as created by keel pki")
	f.StringSliceVar(&apiservers, "apiserver", nil, "`host:port` of the apiservers' gRPC ports")
	f.DurationVar(&ttl, "ttl", 24*time.Hour, "time for which nodes may join")
	f.DurationVar(&wait, "wait", 5*time.Minute, "maximum time to wait for the apiservers")
	if err := cmd.MarkFlagRequired("apiserver"); err != nil {
		panic(err)
	}
	return cmd
}

// readTokens reads the tokens in a directory, by name of the node.
func readTokens(dir string) (map[string]string, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	tokens := map[string]string{}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		token := strings.TrimSpace(string(data))
		if !tokenForm.MatchString(token) {
			return nil, fmt.Errorf("%s/%s does not contain a token", dir, f.Name())
		}
		tokens[f.Name()] = token
	}
	if len(tokens) == 0 {
		return nil, fmt.Errorf("there are no tokens in %s: create them with `keel pki --node`", dir)
	}
	return tokens, nil
}

// admission contains the clients that admit uses.
type admission struct {
	secrets interface {
		Create(context.Context, *corev1.Secret, ...client.WriteOption) (*corev1.Secret, error)
		Delete(ctx context.Context, namespace, name string, opts ...client.DeleteOption) error
	}
	nodes interface {
		Get(ctx context.Context, namespace, name string) (*corev1.Node, error)
	}
}

// admit creates tokens, each for one certificate, for the nodes that do not exist yet, and
// returns their names. Existing nodes have a certificate and need no token.
func (a *admission) admit(ctx context.Context, tokens map[string]string, until time.Time) (admitted []string, err error) {
	for _, node := range slices.Sorted(maps.Keys(tokens)) {
		_, err := a.nodes.Get(ctx, "", node)
		if err == nil {
			continue
		}
		if !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("node %s: %w", node, err)
		}
		secret := bootstrapSecret(tokens[node], until, nodeJoiners, "created by keel node admit for "+node)
		secret.StringData["node-name"] = node
		secret.StringData["single-use"] = "true"
		// Replace the Secret: the old one may be marked as used.
		if err := a.secrets.Delete(ctx, secret.Namespace, secret.Name); err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("token of node %s: %w", node, err)
		}
		if _, err := a.secrets.Create(ctx, secret); err != nil {
			return nil, fmt.Errorf("token of node %s: %w", node, err)
		}
		admitted = append(admitted, node)
	}
	return admitted, nil
}

// bootstrapSecret returns the Secret for a token ("id.secret") whose users are in a group.
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
