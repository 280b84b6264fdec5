package csr

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/testkit"
)

func authority(t *testing.T) (*Authority, *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca.crt": {Type: "CERTIFICATE", Bytes: der}, "ca.key": {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, err := LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return a, pool
}

func request(t *testing.T, cn string, dns ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	org := []string{"team"}
	if len(cn) > 12 && cn[:12] == "system:node:" {
		org = []string{"system:nodes"}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn, Organization: org}, DNSNames: dns}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func object(name, signer, user string, groups []string, req []byte, usages ...certificatesv1.KeyUsage) *certificatesv1.CertificateSigningRequest {
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Now()},
		Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: signer, Username: user, Groups: groups, Request: req, Usages: usages},
	}
}

func TestOfNode(t *testing.T) {
	const kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
	bootstrap := []string{"system:bootstrappers", "system:authenticated"}
	nodes := []string{"system:nodes"}
	auth := certificatesv1.UsageClientAuth
	for name, c := range map[string]struct {
		csr  *certificatesv1.CertificateSigningRequest
		want bool
	}{
		"bootstrap":          {object("a", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "system:node:n"), auth), true},
		"renewal":            {object("a", kubelet, "system:node:n", nodes, request(t, "system:node:n"), auth), true},
		"of another node":    {object("a", kubelet, "system:node:m", nodes, request(t, "system:node:n"), auth), false},
		"of an admin":        {object("a", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "admin"), auth), false},
		"of somebody":        {object("a", kubelet, "jane", []string{"team"}, request(t, "system:node:n"), auth), false},
		"with a server name": {object("a", kubelet, "system:node:n", nodes, request(t, "system:node:n", "host"), auth), false},
		"another usage":      {object("a", kubelet, "system:node:n", nodes, request(t, "system:node:n"), auth, certificatesv1.UsageServerAuth), false},
		"another signer":     {object("a", certificatesv1.KubeAPIServerClientSignerName, "system:node:n", nodes, request(t, "system:node:n"), auth), false},
	} {
		req, err := parse(c.csr)
		if err != nil {
			t.Fatal(err)
		}
		if got := OfNode(c.csr, req); got != c.want {
			t.Errorf("%s: approved %t, want %t", name, got, c.want)
		}
	}
}

func TestFromRequestToCertificate(t *testing.T) {
	a, pool := authority(t)
	w := testkit.Start(t)
	w.Run(New(w.Cluster, a))
	seconds := int32(3600)
	node := object("node", certificatesv1.KubeAPIServerClientKubeletSignerName, "system:bootstrap:abcdef", []string{"system:bootstrappers"},
		request(t, "system:node:n"), certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature)
	node.Spec.ExpirationSeconds = &seconds
	testkit.Create(w, node)
	testkit.Create(w, object("user", certificatesv1.KubeAPIServerClientSignerName, "jane", nil, request(t, "jane"), certificatesv1.UsageClientAuth))
	issued := func(name string) []byte {
		return testkit.Get[*certificatesv1.CertificateSigningRequest](w, "", name).Status.Certificate
	}
	w.Eventually("the node's certificate", func() bool { return len(issued("node")) > 0 })
	block, _ := pem.Decode(issued("node"))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("verify: %v", err)
	}
	if left := time.Until(cert.NotAfter); left > time.Hour || left < 59*time.Minute {
		t.Errorf("it lasts %s, want the hour asked for", left)
	}
	w.Never("signed without approval", func() bool { return len(issued("user")) > 0 })
	testkit.Update(w, "", "user", func(c *certificatesv1.CertificateSigningRequest) {
		c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, LastUpdateTime: metav1.Now()})
	}, client.Subresource("approval"))
	w.Eventually("the user's certificate", func() bool { return len(issued("user")) > 0 })
}

func TestApprovedButNotPermitted(t *testing.T) {
	a, _ := authority(t)
	w := testkit.Start(t)
	w.Run(New(w.Cluster, a))
	bad := object("bad", certificatesv1.KubeAPIServerClientSignerName, "jane", nil, request(t, "jane"), certificatesv1.UsageServerAuth)
	bad.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, LastUpdateTime: metav1.Now()}}
	testkit.Create(w, bad)
	w.Eventually("it is marked as failed", func() bool {
		c := testkit.Get[*certificatesv1.CertificateSigningRequest](w, "", "bad")
		return has(c, certificatesv1.CertificateFailed) != nil && len(c.Status.Certificate) == 0
	})
}

func TestOldRequestsGo(t *testing.T) {
	w := testkit.Start(t)
	pending := testkit.Create(w, object("pending", "example.org/x", "jane", nil, request(t, "jane"), certificatesv1.UsageClientAuth))
	denied := object("denied", "example.org/x", "jane", nil, request(t, "jane"), certificatesv1.UsageClientAuth)
	denied.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue}}
	testkit.Create(w, denied)
	w.Run(build(w.Cluster, nil, func() time.Time { return pending.CreationTimestamp.Add(keepSettled + time.Minute) }))
	w.Eventually("the denied one goes", func() bool { return !testkit.Exists[*certificatesv1.CertificateSigningRequest](w, "", "denied") })
	if !testkit.Exists[*certificatesv1.CertificateSigningRequest](w, "", "pending") {
		t.Error("a request that still waits was removed")
	}
}
