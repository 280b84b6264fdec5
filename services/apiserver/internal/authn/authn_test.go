package authn

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/token"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
)

// objects is a Lookup over a map keyed by "resource/namespace/name" that counts the reads.
type objects struct {
	m     map[string]resource.Object
	reads int
	fail  error
	// behind makes Get return nothing, as before the cache has caught up.
	behind bool
}

func (o *objects) GetFresh(_ context.Context, _, plural, namespace, name string) (resource.Object, bool, error) {
	o.reads++
	if o.fail != nil {
		return nil, false, o.fail
	}
	v, ok := o.m[plural+"/"+namespace+"/"+name]
	return v, ok, nil
}

func (o *objects) Get(_, plural, namespace, name string) (resource.Object, bool) {
	v, ok := o.m[plural+"/"+namespace+"/"+name]
	return v, ok && !o.behind
}

func newIssuer(t testing.TB) *token.Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := token.ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return token.NewIssuer("https://issuer", []string{"api"}, keys)
}

type fixture struct {
	*Authenticator
	ca      *identitytest.CA
	objects *objects
	issuer  *token.Issuer
	now     time.Time
	roots   *x509.CertPool
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{ca: identitytest.NewCA(t), objects: &objects{m: map[string]resource.Object{}}, issuer: newIssuer(t), now: time.Now()}
	clock := func() time.Time { return f.now }
	f.issuer.WithClock(clock)
	f.roots = x509.NewCertPool()
	f.roots.AddCert(f.ca.Cert)
	f.Authenticator = New(Config{Roots: func() *x509.CertPool { return f.roots }, Tokens: f.issuer, Lookup: f.objects, Now: clock})
	return f
}

func meta(namespace, name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}
}

// account adds a service account, a pod, a node and a secret.
func (f *fixture) account() {
	f.objects.m["serviceaccounts/n/sa"] = &corev1.ServiceAccount{ObjectMeta: meta("n", "sa", "sa-uid")}
	f.objects.m["pods/n/p"] = &corev1.Pod{ObjectMeta: meta("n", "p", "pod-uid")}
	f.objects.m["nodes//node"] = &corev1.Node{ObjectMeta: meta("", "node", "node-uid")}
	f.objects.m["secrets/n/s"] = &corev1.Secret{ObjectMeta: meta("n", "s", "secret-uid")}
}

func (f *fixture) sign(t testing.TB, change func(*token.Claims)) string {
	t.Helper()
	c := &token.Claims{
		Audience: []string{"api"}, Namespace: "n", ServiceAccount: token.Ref{Name: "sa", UID: "sa-uid"},
		IssuedAt: f.now, Expiry: f.now.Add(time.Hour),
	}
	change(c)
	raw, err := f.issuer.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func leaf(t testing.TB, ca *identitytest.CA, user string, groups []string, change ...func(*x509.Certificate)) []*x509.Certificate {
	t.Helper()
	data, _ := ca.Issue(t, user, groups, change...)
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c}
}

// refused checks that the error is Unauthorized, has one line, and contains the cause.
func refused(t *testing.T, err error, cause string) {
	t.Helper()
	if !apierrors.IsUnauthorized(err) || !strings.Contains(err.Error(), cause) || strings.Contains(err.Error(), "\n") {
		t.Errorf("err = %v; want Unauthorized with %q", err, cause)
	}
}

func TestCertificates(t *testing.T) {
	f := newFixture(t)
	u, err := f.Authenticate(context.Background(), leaf(t, f.ca, "jane", []string{"dev", "ops"}), "")
	if err != nil || u.Name != "jane" || !slices.Equal(u.Groups, []string{"dev", "ops", "system:authenticated"}) ||
		!strings.HasPrefix(u.Extra[credentialID][0], "X509SHA256=") {
		t.Fatalf("%+v %v", u, err)
	}
	for name, tt := range map[string]struct {
		peer []*x509.Certificate
		want string
	}{
		"foreign CA":  {leaf(t, identitytest.NewCA(t), "jane", []string{"system:masters"}), "not signed by the cluster's CA"},
		"expired":     {leaf(t, f.ca, "jane", nil, func(c *x509.Certificate) { c.NotAfter = f.now.Add(-time.Second) }), "has expired at"},
		"early":       {leaf(t, f.ca, "jane", nil, func(c *x509.Certificate) { c.NotBefore = f.now.Add(time.Minute) }), "is not valid before"},
		"for servers": {leaf(t, f.ca, "jane", nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "not valid for client authentication"},
		"nameless":    {leaf(t, f.ca, "", nil), "names no user"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Authenticate(context.Background(), tt.peer, "")
			refused(t, err, tt.want)
		})
	}

	// A cached result is dropped when the certificate expires, and when its CA is removed.
	peer := leaf(t, f.ca, "short", nil)
	if _, err := f.Authenticate(context.Background(), peer, ""); err != nil {
		t.Fatal(err)
	}
	f.now = peer[0].NotAfter.Add(time.Second)
	_, err = f.Authenticate(context.Background(), peer, "")
	refused(t, err, "has expired")
	f.now = time.Now()
	f.roots = x509.NewCertPool()
	_, err = f.Authenticate(context.Background(), peer, "")
	refused(t, err, "not signed by the cluster's CA")
}

func TestCredentialPrecedence(t *testing.T) {
	f := newFixture(t)
	f.account()
	good, foreign := leaf(t, f.ca, "jane", nil), leaf(t, identitytest.NewCA(t), "eve", nil)
	raw := f.sign(t, func(*token.Claims) {})
	tests := []struct {
		name   string
		peer   []*x509.Certificate
		bearer string
		want   string // user, or empty for Unauthorized
	}{
		{"nothing", nil, "", "system:anonymous"},
		{"certificate before token", good, raw, "jane"},
		{"certificate with a bad token", good, "x", "jane"},
		{"token with a foreign certificate", foreign, raw, "system:serviceaccount:n:sa"},
		{"bad token is not anonymous", nil, "x", ""},
		{"foreign certificate is not anonymous", foreign, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := f.Authenticate(context.Background(), tt.peer, tt.bearer)
			if tt.want == "" {
				refused(t, err, "Unauthorized")
			} else if err != nil || u.Name != tt.want {
				t.Fatalf("%+v %v", u, err)
			}
		})
	}
	f.cfg.NoAnonymous = true
	_, err := f.Authenticate(context.Background(), nil, "")
	refused(t, err, "no credentials")
}

func TestServiceAccountTokens(t *testing.T) {
	gone := metav1.NewTime(time.Now().Add(-2 * time.Minute))
	ending := metav1.NewTime(time.Now().Add(30 * time.Second))
	pod := func(c *token.Claims) {
		c.Pod, c.Node = &token.Ref{Name: "p", UID: "pod-uid"}, &token.Ref{Name: "node", UID: "node-uid"}
	}
	tests := []struct {
		name   string
		claims func(*token.Claims)
		change func(*fixture)
		want   string // in the error
	}{
		{"plain", func(*token.Claims) {}, nil, ""},
		{"bound to a pod", pod, nil, ""},
		{"bound to a terminating pod", pod, func(f *fixture) { f.objects.m["pods/n/p"].SetDeletionTimestamp(&ending) }, ""},
		{"bound to a pod whose node is gone", pod, func(f *fixture) { delete(f.objects.m, "nodes//node") }, ""},
		{"bound to a node", func(c *token.Claims) { c.Node = &token.Ref{Name: "node", UID: "node-uid"} }, nil, ""},
		{"bound to a secret", func(c *token.Claims) { c.Secret = &token.Ref{Name: "s", UID: "secret-uid"} }, nil, ""},
		{"expired", func(c *token.Claims) { c.Expiry = c.IssuedAt.Add(-2 * time.Minute) }, nil, "token has expired"},
		{"for another audience", func(c *token.Claims) { c.Audience = []string{"vault"} }, nil, "another audience"},
		{"account gone", func(*token.Claims) {}, func(f *fixture) { delete(f.objects.m, "serviceaccounts/n/sa") }, "service account is gone"},
		{"account replaced", func(*token.Claims) {}, func(f *fixture) { f.objects.m["serviceaccounts/n/sa"].SetUID("new") }, "has been replaced"},
		{"account deleted", func(*token.Claims) {}, func(f *fixture) { f.objects.m["serviceaccounts/n/sa"].SetDeletionTimestamp(&gone) }, "was deleted"},
		{"pod gone", pod, func(f *fixture) { delete(f.objects.m, "pods/n/p") }, "pod is gone"},
		{"pod replaced", pod, func(f *fixture) { f.objects.m["pods/n/p"].SetUID("new") }, "pod has been replaced"},
		{"node gone", func(c *token.Claims) { c.Node = &token.Ref{Name: "node", UID: "node-uid"} }, func(f *fixture) { delete(f.objects.m, "nodes//node") }, "node is gone"},
		{"secret gone", func(c *token.Claims) { c.Secret = &token.Ref{Name: "s", UID: "secret-uid"} }, func(f *fixture) { delete(f.objects.m, "secrets/n/s") }, "secret is gone"},
		{"store fails", func(*token.Claims) {}, func(f *fixture) { f.objects.fail = errors.New("disk") }, "cannot be checked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.account()
			if tt.change != nil {
				tt.change(f)
			}
			u, err := f.Authenticate(context.Background(), nil, f.sign(t, tt.claims))
			if tt.want != "" {
				refused(t, err, tt.want)
				return
			}
			if err != nil || u.Name != "system:serviceaccount:n:sa" || u.UID != "sa-uid" ||
				!slices.Equal(u.Groups, []string{"system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"}) {
				t.Fatalf("%+v %v", u, err)
			}
			if tt.name == "bound to a pod" && (u.Extra[extraPodName][0] != "p" || u.Extra[extraPodUID][0] != "pod-uid" || u.Extra[extraNodeName][0] != "node") {
				t.Fatalf("extra %v", u.Extra)
			}
		})
	}
}

func TestTokensInSecrets(t *testing.T) {
	f := newFixture(t)
	f.account()
	raw, err := f.issuer.SignLegacy("n", "s", token.Ref{Name: "sa", UID: "sa-uid"})
	if err != nil {
		t.Fatal(err)
	}
	c := raw
	_, err = f.Authenticate(context.Background(), nil, c)
	refused(t, err, "no longer the one in its secret")
	secret := f.objects.m["secrets/n/s"].(*corev1.Secret)
	secret.Data = map[string][]byte{"token": []byte(raw)}
	if u, err := f.Authenticate(context.Background(), nil, c); err != nil || u.Name != "system:serviceaccount:n:sa" {
		t.Fatal(u, err)
	}
	f.now = f.now.Add(time.Minute)
	secret.Labels = map[string]string{invalidSince: "2030-01-01"}
	_, err = f.Authenticate(context.Background(), nil, c)
	refused(t, err, "marked invalid")
}

func TestVerifiedTokensAreCached(t *testing.T) {
	f := newFixture(t)
	f.account()
	c := f.sign(t, func(c *token.Claims) { c.Expiry = f.now.Add(time.Hour) })
	for range 3 {
		if _, err := f.Authenticate(context.Background(), nil, c); err != nil {
			t.Fatal(err)
		}
	}
	if f.objects.reads != 1 {
		t.Fatalf("three requests caused %d reads, want 1", f.objects.reads)
	}
	delete(f.objects.m, "serviceaccounts/n/sa")
	f.now = f.now.Add(cached)
	_, err := f.Authenticate(context.Background(), nil, c)
	refused(t, err, "is gone")

	// A token that expires sooner is cached only until then.
	f.account()
	c = f.sign(t, func(c *token.Claims) { c.Expiry = f.now.Add(2 * time.Second) })
	if _, err := f.Authenticate(context.Background(), nil, c); err != nil {
		t.Fatal(err)
	}
	reads := f.objects.reads
	f.now = f.now.Add(3 * time.Second)
	f.Authenticate(context.Background(), nil, c)
	if f.objects.reads == reads {
		t.Fatal("an expired token was accepted from the cache")
	}
}

func TestAudiences(t *testing.T) {
	f := newFixture(t)
	f.account()
	raw := f.sign(t, func(c *token.Claims) { c.Audience = []string{"vault", "registry"} })
	if _, got, err := f.Token(context.Background(), raw, []string{"x", "vault"}); err != nil || !slices.Equal(got, []string{"vault"}) {
		t.Fatal(got, err)
	}
	if _, _, err := f.Token(context.Background(), raw, []string{"x"}); err == nil {
		t.Fatal("a token was accepted for an audience that it does not have")
	}
	// The result for one audience is not used for another.
	if _, _, err := f.Token(context.Background(), raw, []string{"api"}); err == nil {
		t.Fatal("the cached result for another audience was used")
	}
}

func bootstrapSecret(change func(map[string]string)) *corev1.Secret {
	data := map[string]string{
		"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
		"auth-extra-groups": "system:bootstrappers:keelson:node",
	}
	if change != nil {
		change(data)
	}
	s := &corev1.Secret{ObjectMeta: meta("kube-system", "bootstrap-token-abcdef", "u"), Type: bootstrapSecretType, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

// TestMadeUpTokensCostFewReads tries many made-up tokens, and a real one in between.
func TestMadeUpTokensCostFewReads(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	o := &objects{m: map[string]resource.Object{"secrets/kube-system/bootstrap-token-abcdef": bootstrapSecret(nil)}}
	a := New(Config{Roots: x509.NewCertPool, Tokens: newIssuer(t), Lookup: o, Now: func() time.Time { return now }})
	try := func(token string) error {
		_, err := a.Authenticate(t.Context(), nil, token)
		return err
	}
	const good = "abcdef.0123456789abcdef"
	for i := range 500 {
		for _, token := range []string{fmt.Sprintf("aaa%03d.0123456789abcdef", i), fmt.Sprintf("abcdef.0123456789aaa%03d", i)} {
			if try(token) == nil {
				t.Fatalf("%s was accepted", token)
			}
		}
	}
	if o.reads > guessBurst {
		t.Errorf("1000 made-up tokens caused %d reads of the store, want at most %d", o.reads, guessBurst)
	}
	if err := try(good); err != nil {
		t.Errorf("a valid token among them was refused: %v", err)
	}
	delete(o.m, "secrets/kube-system/bootstrap-token-abcdef")
	now = now.Add(cached + time.Second)
	if try(good) == nil {
		t.Error("a withdrawn token was accepted")
	}
	// A token that this process's cache does not have yet.
	o.m["secrets/kube-system/bootstrap-token-abcdef"], o.behind = bootstrapSecret(nil), true
	if err := try(good); err != nil {
		t.Errorf("a new token was refused: %v", err)
	}
}

func TestBootstrapTokens(t *testing.T) {
	future, past := time.Now().Add(time.Hour).Format(time.RFC3339), time.Now().Add(-time.Hour).Format(time.RFC3339)
	set := func(key, value string) func(map[string]string) { return func(m map[string]string) { m[key] = value } }
	deleted := bootstrapSecret(nil)
	deleted.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	opaque := bootstrapSecret(nil)
	opaque.Type = corev1.SecretTypeOpaque
	tests := []struct {
		name   string
		secret *corev1.Secret
		raw    string
		ok     bool
	}{
		{"good", bootstrapSecret(nil), "abcdef.0123456789abcdef", true},
		{"good until later", bootstrapSecret(set("expiration", future)), "abcdef.0123456789abcdef", true},
		{"expired", bootstrapSecret(set("expiration", past)), "abcdef.0123456789abcdef", false},
		{"unreadable expiry", bootstrapSecret(set("expiration", "soon")), "abcdef.0123456789abcdef", false},
		{"wrong secret", bootstrapSecret(nil), "abcdef.0123456789abcdee", false},
		{"unknown id", bootstrapSecret(nil), "abcdeg.0123456789abcdef", false},
		{"another id in the secret", bootstrapSecret(set("token-id", "zzzzzz")), "abcdef.0123456789abcdef", false},
		{"not for authentication", bootstrapSecret(set("usage-bootstrap-authentication", "false")), "abcdef.0123456789abcdef", false},
		{"group not allowed", bootstrapSecret(set("auth-extra-groups", "system:masters")), "abcdef.0123456789abcdef", false},
		{"group with a line break", bootstrapSecret(set("auth-extra-groups", "system:bootstrappers:a\nsystem:masters")), "abcdef.0123456789abcdef", false},
		{"empty secret", bootstrapSecret(set("token-secret", "")), "abcdef.", false},
		{"other type", opaque, "abcdef.0123456789abcdef", false},
		{"deleted", deleted, "abcdef.0123456789abcdef", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.objects.m["secrets/kube-system/bootstrap-token-abcdef"] = tt.secret
			u, err := f.Authenticate(context.Background(), nil, tt.raw)
			if !tt.ok {
				refused(t, err, "Unauthorized: invalid bearer token")
				return
			}
			if err != nil || u.Name != "system:bootstrap:abcdef" ||
				!slices.Equal(u.Groups, []string{"system:bootstrappers", "system:bootstrappers:keelson:node", "system:authenticated"}) {
				t.Fatalf("%+v %v", u, err)
			}
		})
	}
}

func TestBootstrapTokenOfANode(t *testing.T) {
	f := newFixture(t)
	f.objects.m["secrets/kube-system/bootstrap-token-abcdef"] = bootstrapSecret(func(m map[string]string) { m["node-name"] = "node-1.example" })
	u, err := f.Authenticate(context.Background(), nil, "abcdef.0123456789abcdef")
	if err != nil || !slices.Equal(u.Extra[identity.BootstrapNode], []string{"node-1.example"}) {
		t.Errorf("%+v, %v", u, err)
	}
}

func FuzzBootstrapToken(f *testing.F) {
	f.Add("abcdef.0123456789abcdef")
	f.Add("abcdef.0123456789abcde\x00")
	f.Fuzz(func(t *testing.T, raw string) {
		id, secret, ok := parseBootstrapToken(raw)
		if !ok {
			return
		}
		if id+"."+secret != raw || len(id) != 6 || len(secret) != 16 || strings.Trim(id+secret, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
			t.Fatalf("%q %q from %q", id, secret, raw)
		}
	})
}

func TestNoTokenInLogs(t *testing.T) {
	var out bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(before)
	f := newFixture(t)
	f.objects.m["secrets/kube-system/bootstrap-token-abcdef"] = bootstrapSecret(nil)
	for _, raw := range []string{"abcdef.0123456789abcdee", "sesame-open", f.sign(t, func(*token.Claims) {})} {
		_, err := f.Authenticate(context.Background(), nil, raw)
		refused(t, err, "Unauthorized")
		if strings.Contains(out.String(), raw) || strings.Contains(err.Error(), raw) {
			t.Errorf("token in log or error: %s %v", out.String(), err)
		}
	}
	if out.Len() == 0 {
		t.Error("refusals were not logged")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache[int](3)
	now := time.Now()
	for i := range 10 {
		c.put(digest{byte(i)}, i, now.Add(time.Hour))
		c.put(digest{byte(i)}, i, now.Add(time.Hour)) // again
	}
	if len(c.entries) != 3 {
		t.Fatalf("%d entries", len(c.entries))
	}
	for i := 7; i < 10; i++ {
		if v, ok := c.get(digest{byte(i)}, now); !ok || v != i {
			t.Errorf("entry %d was evicted", i)
		}
	}
}

func BenchmarkCertificate(b *testing.B) {
	f := newFixture(b)
	c := leaf(b, f.ca, "jane", []string{"dev"})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Authenticate(context.Background(), c, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkToken(b *testing.B) {
	f := newFixture(b)
	f.account()
	c := f.sign(b, func(*token.Claims) {})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Authenticate(context.Background(), nil, c); err != nil {
			b.Fatal(err)
		}
	}
}
