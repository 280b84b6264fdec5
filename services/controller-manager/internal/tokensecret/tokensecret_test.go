package tokensecret_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
	"keelson.dev/services/controller-manager/internal/tokensecret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newKey(t *testing.T) (*ecdsa.PrivateKey, *tokensecret.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := tokensecret.ParseKey(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return key, signer
}

func secretOf(account string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "token", Annotations: map[string]string{corev1.ServiceAccountNameKey: account}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}
}

func TestFillsAndFollowsItsAccount(t *testing.T) {
	w := Start(t)
	key, signer := newKey(t)
	w.Run(tokensecret.New(w.Cluster, signer, func() []byte { return []byte("pem") }))
	account := Create(w, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot"}})
	Create(w, secretOf("robot"))
	get := func() *corev1.Secret { return Get[*corev1.Secret](w, "default", "token") }
	w.Eventually("a token", func() bool { return len(get().Data["token"]) > 0 })
	s := get()
	if string(s.Data["ca.crt"]) != "pem" || string(s.Data["namespace"]) != "default" || s.Annotations[corev1.ServiceAccountUIDKey] != string(account.UID) {
		t.Errorf("secret %+v", s)
	}
	token, err := jwt.ParseSigned(string(s.Data["token"]), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := token.Claims(key.Public(), &claims); err != nil {
		t.Fatal(err)
	}
	Same(t, "claims", claims, map[string]any{
		"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:default:robot",
		"kubernetes.io/serviceaccount/namespace":            "default",
		"kubernetes.io/serviceaccount/secret.name":          "token",
		"kubernetes.io/serviceaccount/service-account.name": "robot",
		"kubernetes.io/serviceaccount/service-account.uid":  string(account.UID),
	})

	Update(w, "default", "token", func(s *corev1.Secret) { delete(s.Data, "ca.crt") })
	w.Eventually("the CA again", func() bool { return string(get().Data["ca.crt"]) == "pem" })
	if string(get().Data["token"]) != string(s.Data["token"]) {
		t.Error("the token was replaced")
	}
	Delete[*corev1.ServiceAccount](w, "default", "robot")
	w.Eventually("the secret is deleted with its account", func() bool { return !Exists[*corev1.Secret](w, "default", "token") })
}

func TestSecretsWithoutAccountGo(t *testing.T) {
	w := Start(t)
	_, signer := newKey(t)
	w.Run(tokensecret.New(w.Cluster, signer, func() []byte { return []byte("pem") }))
	Create(w, secretOf("absent"))
	w.Eventually("it is deleted", func() bool { return !Exists[*corev1.Secret](w, "default", "token") })
	Create(w, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot"}})
	other := secretOf("robot")
	other.Annotations[corev1.ServiceAccountUIDKey] = "an earlier one"
	Create(w, other)
	w.Eventually("the secret of an earlier account is deleted", func() bool { return !Exists[*corev1.Secret](w, "default", "token") })
}

func TestParseKeyRefuses(t *testing.T) {
	for _, data := range []string{"", "junk", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if _, err := tokensecret.ParseKey([]byte(data)); err == nil {
			t.Errorf("%q was accepted", data)
		}
	}
}
