package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/resource"
)

func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func newEC(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keys(t testing.TB, data ...[]byte) *Keys {
	t.Helper()
	k, err := ParseKeys(slices.Concat(data...))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

const url = "https://kubernetes.default.svc.cluster.local"

var epoch = time.Unix(1_800_000_000, 0)

func sample() *Claims {
	return &Claims{
		Audience: []string{url}, Namespace: "n", ServiceAccount: Ref{"sa", "u1"}, Pod: &Ref{"p", "u2"}, Node: &Ref{"node", "u3"},
		IssuedAt: epoch, Expiry: epoch.Add(time.Hour),
	}
}

func TestSignAndVerify(t *testing.T) {
	sec1, err := x509.MarshalECPrivateKey(newEC(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := newRSA(t, 2048)
	for name, tt := range map[string]struct {
		pem       []byte
		algorithm string
	}{
		"RSA":       {pkcs8(t, rsaKey), "RS256"},
		"RSA PKCS1": {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}), "RS256"},
		"P-256":     {pkcs8(t, newEC(t, elliptic.P256())), "ES256"},
		"P-384":     {pkcs8(t, newEC(t, elliptic.P384())), "ES384"},
		"P-521":     {pkcs8(t, newEC(t, elliptic.P521())), "ES512"},
		"SEC1":      {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), "ES256"},
	} {
		t.Run(name, func(t *testing.T) {
			i := NewIssuer(url, nil, keys(t, tt.pem)).WithClock(func() time.Time { return epoch })
			want := sample()
			raw, err := i.Sign(want)
			if err != nil {
				t.Fatal(err)
			}
			got, err := i.Verify(raw)
			if err != nil {
				t.Fatal(err)
			}
			a, _ := json.Marshal(want)
			b, _ := json.Marshal(got)
			if !got.IssuedAt.Equal(want.IssuedAt) || !got.Expiry.Equal(want.Expiry) || got.ID == "" ||
				got.ServiceAccount != want.ServiceAccount || *got.Pod != *want.Pod || *got.Node != *want.Node || got.Secret != nil {
				t.Fatalf("got %s\nwant %s", b, a)
			}
			config, err := i.Configuration("https://api:6443/")
			if err != nil || !strings.Contains(string(config), `"jwks_uri":"https://api:6443/openid/v1/jwks"`) || !strings.Contains(string(config), tt.algorithm) {
				t.Fatalf("%s %v", config, err)
			}
			// The published keys are sufficient to verify the token.
			published, err := i.KeySet()
			if err != nil {
				t.Fatal(err)
			}
			var set jose.JSONWebKeySet
			if err := json.Unmarshal(published, &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].IsPublic() || set.Keys[0].Algorithm != tt.algorithm {
				t.Fatalf("%s %v", published, err)
			}
			parsed, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(tt.algorithm)})
			if err != nil {
				t.Fatal(err)
			}
			var c jwt.Claims
			if err := parsed.Claims(set, &c); err != nil || c.Subject != "system:serviceaccount:n:sa" || c.Issuer != url {
				t.Fatal(c, err)
			}
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	mine, other := pkcs8(t, newEC(t, elliptic.P256())), pkcs8(t, newEC(t, elliptic.P256()))
	i := NewIssuer(url, nil, keys(t, mine)).WithClock(func() time.Time { return epoch })
	sign := func(i *Issuer, change func(*Claims)) string {
		c := sample()
		change(c)
		raw, err := i.Sign(c)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	raw := func(claims ...any) string {
		b := jwt.Signed(i.keys.signer)
		for _, c := range claims {
			b = b.Claims(c)
		}
		s, err := b.Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := sign(i, func(*Claims) {})
	flipped := []byte(good)
	flipped[len(flipped)/2] ^= 1
	hmacSigner, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("k", 32))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hmacToken, err := jwt.Signed(hmacSigner).Claims(jwt.Claims{Issuer: url}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	later := jwt.NewNumericDate(epoch.Add(time.Hour))
	tests := []struct {
		name, token string
		want        error
	}{
		{"empty", "", ErrForeign},
		{"not a token", "hello", ErrForeign},
		{"three words", "a.b.c", ErrForeign},
		{"huge", strings.Repeat("a.", 2) + strings.Repeat("a", maxSize), ErrForeign},
		{"another key", sign(NewIssuer(url, nil, keys(t, other)), func(*Claims) {}), ErrForeign},
		{"another issuer", sign(NewIssuer("https://elsewhere", nil, keys(t, mine)), func(*Claims) {}), ErrForeign},
		{"changed", string(flipped), ErrForeign},
		{"cut", good[:len(good)-5], ErrForeign},
		{"symmetric algorithm", hmacToken, ErrForeign},
		{"no algorithm", "eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".", ErrForeign},
		{"expired", sign(i, func(c *Claims) { c.Expiry = epoch.Add(-2 * time.Minute) }), ErrExpired},
		{"not yet valid", sign(i, func(c *Claims) { c.IssuedAt = epoch.Add(2 * time.Minute) }), ErrNotYetValid},
		{"no service account", sign(i, func(c *Claims) { c.ServiceAccount = Ref{} }), ErrMalformed},
		{"no namespace", sign(i, func(c *Claims) { c.Namespace = "" }), ErrMalformed},
		{"no Kubernetes claims", raw(jwt.Claims{Issuer: url, Expiry: later}), ErrMalformed},
		{"no expiry", raw(jwt.Claims{Issuer: url, Subject: "system:serviceaccount:n:sa"}, private{Kubernetes: &bound{Namespace: "n", ServiceAccount: Ref{"sa", "u"}}}), ErrMalformed},
		{"another subject", raw(jwt.Claims{Issuer: url, Expiry: later, Subject: "system:serviceaccount:n:boss"}, private{Kubernetes: &bound{Namespace: "n", ServiceAccount: Ref{"sa", "u"}}}), ErrMalformed},
		{"legacy without secret", raw(jwt.Claims{Issuer: legacyIssuer, Subject: "system:serviceaccount:n:sa"}, private{LegacyNamespace: "n", LegacyName: "sa", LegacyUID: "u"}), ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := i.Verify(tt.token); !errors.Is(err, tt.want) {
				t.Fatalf("%+v, %v; want %v", c, err, tt.want)
			}
		})
	}
	if _, err := i.Verify(good); err != nil {
		t.Fatal(err)
	}
}

func TestLegacyToken(t *testing.T) {
	i := NewIssuer(url, nil, keys(t, pkcs8(t, newEC(t, elliptic.P256()))))
	raw, err := i.SignLegacy("n", "s", Ref{"sa", "u"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := i.Verify(raw)
	if err != nil || !c.Legacy || c.Secret.Name != "s" || c.ServiceAccount != (Ref{"sa", "u"}) || !c.Expiry.IsZero() || !slices.Equal(c.Audience, i.Audiences()) {
		t.Fatalf("%+v %v", c, err)
	}
}

func TestKeyRotation(t *testing.T) {
	before, after := pkcs8(t, newRSA(t, 2048)), pkcs8(t, newEC(t, elliptic.P256()))
	clock := func() time.Time { return epoch }
	raw, err := NewIssuer(url, nil, keys(t, before)).Sign(sample())
	if err != nil {
		t.Fatal(err)
	}
	both := NewIssuer(url, nil, keys(t, after, before)).WithClock(clock)
	if _, err := both.Verify(raw); err != nil {
		t.Errorf("a token of the old key was refused: %v", err)
	}
	fresh, err := both.Sign(sample())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewIssuer(url, nil, keys(t, after)).WithClock(clock).Verify(fresh); err != nil {
		t.Errorf("the token was not signed with the new key: %v", err)
	}
}

func TestParseKeysRefuses(t *testing.T) {
	publicDER, err := x509.MarshalPKIXPublicKey(newEC(t, elliptic.P256()).Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":       nil,
		"not PEM":     []byte("key"),
		"broken":      pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
		"public only": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}),
		"P-224":       pkcs8(t, newEC(t, elliptic.P224())),
	} {
		if _, err := ParseKeys(data); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// objects is a Lookup over a map keyed by "resource/namespace/name".
type objects map[string]resource.Object

func (o objects) GetFresh(_ context.Context, _, plural, namespace, name string) (resource.Object, bool, error) {
	if namespace == "broken" {
		return nil, false, errors.New("store is closed")
	}
	v, ok := o[plural+"/"+namespace+"/"+name]
	return v, ok, nil
}

func meta(namespace, name, uid string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}
}

func TestRequests(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: meta("n", "p", "pod-uid")}
	pod.Spec.ServiceAccountName, pod.Spec.NodeName = "sa", "node"
	other := &corev1.Pod{ObjectMeta: meta("n", "other", "x")}
	other.Spec.ServiceAccountName = "else"
	lookup := objects{
		"serviceaccounts/n/sa": &corev1.ServiceAccount{ObjectMeta: meta("n", "sa", "sa-uid")},
		"pods/n/p":             pod,
		"pods/n/other":         other,
		"secrets/n/s":          &corev1.Secret{ObjectMeta: meta("n", "s", "secret-uid")},
		"nodes//node":          &corev1.Node{ObjectMeta: meta("", "node", "node-uid")},
	}
	i := NewIssuer(url, nil, keys(t, pkcs8(t, newEC(t, elliptic.P256())))).WithClock(func() time.Time { return epoch })
	r := &Requests{Issuer: i, Lookup: lookup, MaxSeconds: 1 << 20}
	seconds := func(n int64) func(*authenticationv1.TokenRequest) {
		return func(tr *authenticationv1.TokenRequest) { tr.Spec.ExpirationSeconds = &n }
	}
	bind := func(kind, name, uid string) func(*authenticationv1.TokenRequest) {
		return func(tr *authenticationv1.TokenRequest) {
			tr.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name, UID: types.UID(uid)}
		}
	}
	tests := []struct {
		name    string
		account string
		change  func(*authenticationv1.TokenRequest)
		refused func(error) bool
		text    string // of the error, or of the claims as JSON
	}{
		{"plain", "sa", func(*authenticationv1.TokenRequest) {}, nil, `"Audience":["` + url + `"]`},
		{"audience", "sa", func(tr *authenticationv1.TokenRequest) { tr.Spec.Audiences = []string{"vault"} }, nil, `"Audience":["vault"]`},
		{"pod", "sa", bind("Pod", "p", "pod-uid"), nil, `"Pod":{"name":"p","uid":"pod-uid"},"Secret":null,"Node":{"name":"node","uid":"node-uid"}`},
		{"secret", "sa", bind("Secret", "s", ""), nil, `"Secret":{"name":"s","uid":"secret-uid"}`},
		{"node", "sa", bind("Node", "node", ""), nil, `"Node":{"name":"node","uid":"node-uid"}`},
		{"too short", "sa", seconds(599), apierrors.IsInvalid, "may not specify a duration less than 10 minutes"},
		{"too long", "sa", seconds(1<<32 + 1), apierrors.IsInvalid, "larger than 2^32"},
		{"no such account", "nobody", func(*authenticationv1.TokenRequest) {}, apierrors.IsNotFound, `serviceaccounts "nobody" not found`},
		{"other name", "sa", func(tr *authenticationv1.TokenRequest) { tr.Name = "x" }, apierrors.IsInvalid, "must match the service account name"},
		{"other namespace", "sa", func(tr *authenticationv1.TokenRequest) { tr.Namespace = "x" }, apierrors.IsInvalid, "must match the service account namespace"},
		{"other uid", "sa", func(tr *authenticationv1.TokenRequest) { tr.UID = "x" }, apierrors.IsConflict, "does not match the UID of the service account"},
		{"pod of another account", "sa", bind("Pod", "other", ""), apierrors.IsBadRequest, "different serviceaccount name"},
		{"no such pod", "sa", bind("Pod", "x", ""), apierrors.IsNotFound, ""},
		{"other pod uid", "sa", bind("Pod", "p", "x"), apierrors.IsConflict, "deleted and then recreated"},
		{"other kind", "sa", bind("Service", "x", ""), apierrors.IsBadRequest, "cannot bind token to object of type"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := &authenticationv1.TokenRequest{}
			tt.change(in)
			out, warnings, err := r.Create(context.Background(), "n", tt.account, in, false)
			if tt.refused != nil {
				if !tt.refused(err) || !strings.Contains(err.Error(), tt.text) {
					t.Fatalf("err = %v", err)
				}
				return
			}
			if err != nil || len(warnings) != 0 {
				t.Fatal(err, warnings)
			}
			c, err := i.Verify(out.Status.Token)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := json.Marshal(c); !strings.Contains(string(b), tt.text) {
				t.Fatalf("%s\nwant %s", b, tt.text)
			}
			if c.ServiceAccount.UID != "sa-uid" || !c.Expiry.Equal(epoch.Add(time.Hour)) || !out.Status.ExpirationTimestamp.Time.Equal(c.Expiry) {
				t.Fatalf("%+v, status %v", c, out.Status.ExpirationTimestamp)
			}
		})
	}

	in := &authenticationv1.TokenRequest{}
	seconds(1 << 30)(in)
	out, warnings, err := r.Create(context.Background(), "n", "sa", in, false)
	if err != nil || len(warnings) != 1 || *out.Spec.ExpirationSeconds != 1<<20 || *in.Spec.ExpirationSeconds != 1<<30 {
		t.Fatalf("lifetime limit of the server: warnings %v, error %v", warnings, err)
	}
	if out, _, err := r.Create(context.Background(), "n", "sa", &authenticationv1.TokenRequest{}, true); err != nil || out.Status.Token != "" {
		t.Fatalf("dry run: %v", err)
	}
	if _, _, err := r.Create(context.Background(), "broken", "sa", &authenticationv1.TokenRequest{}, false); !apierrors.IsInternalError(err) {
		t.Fatalf("failing store: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	i := NewIssuer(url, nil, keys(f, pkcs8(f, newEC(f, elliptic.P256())))).WithClock(func() time.Time { return epoch })
	raw, err := i.Sign(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := i.Verify(s); err == nil && s != raw {
			// Only another encoding of the same signed text may pass.
			if !strings.HasPrefix(s, raw[:strings.LastIndexByte(raw, '.')]) {
				t.Fatalf("forged: %+v", c)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for name, key := range map[string]any{"ES256": newEC(b, elliptic.P256()), "RS256": newRSA(b, 2048)} {
		b.Run(name, func(b *testing.B) {
			i := NewIssuer(url, nil, keys(b, pkcs8(b, key))).WithClock(func() time.Time { return epoch })
			raw, err := i.Sign(sample())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := i.Verify(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
