package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// signer answers every request, as the cluster's signer does.
type signer struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key: key, cert: cert}
}

func (s *signer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})
}

// run answers requests until the test ends. If refuse is true, it denies them.
func (s *signer) run(t *testing.T, c *client.Client, refuse bool) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		requests := client.For[*certificatesv1.CertificateSigningRequest](c)
		for ev, err := range requests.Watch(ctx, client.WatchOptions{SendInitialEvents: true}) {
			if err != nil {
				return
			}
			if ev.Object == nil || len(ev.Object.Status.Certificate) > 0 || len(ev.Object.Status.Conditions) > 0 {
				continue
			}
			out := ev.Object.DeepCopy()
			if refuse {
				out.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue, Reason: "No", Message: "not you"}}
				_, _ = requests.Update(ctx, out, client.Subresource("approval"))
				continue
			}
			out.Status.Certificate = s.sign(t, out)
			if _, err := requests.UpdateStatus(ctx, out); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func (s *signer) sign(t *testing.T, csr *certificatesv1.CertificateSigningRequest) []byte {
	block, _ := pem.Decode(csr.Spec.Request)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Error(err)
		return nil
	}
	if request.CheckSignature() != nil || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		t.Errorf("request: %+v", csr.Spec)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: request.Subject, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.cert, request.PublicKey, s.key)
	if err != nil {
		t.Error(err)
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestObtainAndStore(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := clienttest.Start(t)
	s := newSigner(t)
	s.run(t, c, false)
	dir := t.TempDir()
	if !Needed(dir) {
		t.Error("an empty directory needs a certificate")
	}
	if err := os.WriteFile(filepath.Join(dir, identity.CAFile), s.pem(), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first certificate, and its renewal
		got, err := renew(ctx, c, "node-a")
		if err != nil {
			t.Fatal(err)
		}
		if err := got.store(dir); err != nil {
			t.Fatal(err)
		}
		id, err := identity.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if id.Name() != "system:node:node-a" {
			t.Errorf("name: %s", id.Name())
		}
	}
	if Needed(dir) {
		t.Error("a directory with a certificate needs none")
	}
	info, err := os.Stat(filepath.Join(dir, identity.KeyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v %v", info.Mode(), err)
	}
}

func TestRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := clienttest.Start(t)
	newSigner(t).run(t, c, true)
	_, err := renew(ctx, c, "node-a")
	if err == nil || !strings.Contains(err.Error(), "not you") {
		t.Errorf("error: %v", err)
	}
}

// TestFirstGoesOn interrupts a node that waits for its first certificate. The next attempt
// finds the same request, so a single-use token suffices.
func TestFirstGoesOn(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := clienttest.Start(t)
	requests := client.For[*certificatesv1.CertificateSigningRequest](c)
	dir := t.TempDir()
	cut, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := first(cut, c, "node-a", dir)
		ended <- err
	}()
	for ev, err := range requests.Watch(ctx, client.WatchOptions{SendInitialEvents: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Object != nil {
			break
		}
	}
	stop()
	if err := <-ended; err == nil {
		t.Fatal("no request was created")
	}
	pending := filepath.Join(dir, pendingFile)
	if info, err := os.Stat(pending); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the pending key: %v, %v", info, err)
	}
	newSigner(t).run(t, c, false)
	got, err := first(ctx, c, "node-a", dir)
	if err == nil {
		err = errors.Join(got.store(dir), forgetKey(dir))
	}
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, err := range requests.All(ctx, client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if count != 1 {
		t.Errorf("%d requests, want the first one to be reused", count)
	}
	if _, err := os.Stat(pending); !os.IsNotExist(err) {
		t.Errorf("the pending key was not removed: %v", err)
	}
}

// TestFirstIsRefused checks that a denied request is followed by one with a new key.
func TestFirstIsRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := clienttest.Start(t)
	newSigner(t).run(t, c, true)
	dir := t.TempDir()
	if _, err := first(ctx, c, "node-a", dir); err == nil || !strings.Contains(err.Error(), "not you") {
		t.Errorf("error: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, pendingFile)); !os.IsNotExist(err) {
		t.Errorf("the key of a denied request was not removed: %v", err)
	}
}

func TestDue(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(100 * time.Hour)}
	if got := due(leaf, 0); got.Round(time.Second) != begin.Add(70*time.Hour) {
		t.Errorf("earliest: %v", got)
	}
	if got := due(leaf, 1); got.Round(time.Second) != begin.Add(90*time.Hour) {
		t.Errorf("latest: %v", got)
	}
}
