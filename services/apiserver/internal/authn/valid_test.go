package authn

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/token"
)

// TestCredentialsAreWithdrawn checks that a user has the expiry of its credential, and that the
// credential reports its withdrawal. If that cannot be determined, the credential counts as
// valid.
func TestCredentialsAreWithdrawn(t *testing.T) {
	ctx := context.Background()
	end := func(f *fixture) time.Time { return f.now.Add(time.Hour).Truncate(time.Second) }
	bySecret := func(f *fixture) string {
		return f.sign(t, func(c *token.Claims) { c.Expiry, c.Secret = end(f), &token.Ref{Name: "s", UID: "secret-uid"} })
	}
	tests := []struct {
		name     string
		present  func(*fixture) string // empty for a certificate
		withdraw func(*fixture)
		valid    bool
	}{
		{"unchanged", bySecret, func(*fixture) {}, true},
		{"the store fails", bySecret, func(f *fixture) { f.objects.fail = errors.New("disk") }, true},
		{"service account gone", bySecret, func(f *fixture) { delete(f.objects.m, "serviceaccounts/n/sa") }, false},
		{"service account replaced", bySecret, func(f *fixture) { f.objects.m["serviceaccounts/n/sa"].SetUID("new") }, false},
		{"secret gone", bySecret, func(f *fixture) { delete(f.objects.m, "secrets/n/s") }, false},
		{"bootstrap token gone", func(f *fixture) string {
			f.objects.m["secrets/kube-system/bootstrap-token-abcdef"] = bootstrapSecret(func(m map[string]string) {
				m["expiration"] = end(f).Format(time.RFC3339)
			})
			return "abcdef.0123456789abcdef"
		}, func(f *fixture) { delete(f.objects.m, "secrets/kube-system/bootstrap-token-abcdef") }, false},
		{"bootstrap token deleted", func(f *fixture) string {
			f.objects.m["secrets/kube-system/bootstrap-token-abcdef"] = bootstrapSecret(func(m map[string]string) {
				m["expiration"] = end(f).Format(time.RFC3339)
			})
			return "abcdef.0123456789abcdef"
		}, func(f *fixture) {
			f.objects.m["secrets/kube-system/bootstrap-token-abcdef"].(*corev1.Secret).DeletionTimestamp = &metav1.Time{Time: f.now}
		}, false},
		{"certificate", func(*fixture) string { return "" }, func(*fixture) {}, true},
		{"certificate of a CA that is no longer trusted", func(*fixture) string { return "" }, func(f *fixture) { f.roots = x509.NewCertPool() }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.account()
			raw := tt.present(f)
			peer := leaf(t, f.ca, "jane", nil, func(c *x509.Certificate) { c.NotAfter = end(f) })
			if raw != "" {
				peer = nil
			}
			u, err := f.Authenticate(ctx, peer, raw)
			if err != nil {
				t.Fatal(err)
			}
			if !u.Expires.Equal(end(f)) {
				t.Errorf("the credential ends at %v; want %v", u.Expires, end(f))
			}
			if !u.Credential.Valid(ctx) {
				t.Error("the new credential is not valid")
			}
			tt.withdraw(f)
			f.now = f.now.Add(cached)
			if got := u.Credential.Valid(ctx); got != tt.valid {
				t.Errorf("valid: %t; want %t", got, tt.valid)
			}
			if text := fmt.Sprintf("%v %+v %s", u, u, u.Credential); raw != "" && strings.Contains(text, raw) {
				t.Errorf("the token was printed: %s", text)
			}
		})
	}
}

// TestImpersonationKeepsTheCredential checks that an impersonated user has the impersonator's
// credential.
func TestImpersonationKeepsTheCredential(t *testing.T) {
	f := newFixture(t)
	u := request.User{Name: "me", Groups: []string{"system:masters"}, Expires: f.now, Credential: &bearer{}}
	as, err := Impersonate(context.Background(), allowAll{}, u, map[string][]string{"impersonate-user": {"you"}}, nil, false)
	if err != nil || !as.Expires.Equal(f.now) || as.Credential != u.Credential {
		t.Fatalf("%+v %v", as, err)
	}
}

type allowAll struct{}

func (allowAll) Authorize(context.Context, *request.Attributes) (bool, string, error) {
	return true, "", nil
}
