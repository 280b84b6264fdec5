// Package join obtains a node's certificates: the first one with a bootstrap token, and
// each later one with the current certificate before that expires. Both are requested by a
// CertificateSigningRequest that the cluster's signer signs.
//
// The private key is generated here and must never leave its directory.
package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/identity"
)

// attempt bounds one wait for the signer. After that the request is read again.
const attempt = 5 * time.Minute

// Bootstrap is what a node without a certificate needs to join the cluster.
type Bootstrap struct {
	Node      string
	Endpoints []string
	// Token is a bootstrap token, "id.secret".
	Token string
	// CA is the cluster's CA certificate in PEM.
	CA []byte
	// Dir is the directory that the identity is written to.
	Dir string
}

// Needed reports whether a directory holds no certificate yet.
func Needed(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, identity.CertFile))
	return errors.Is(err, os.ErrNotExist)
}

// Run obtains the first certificate. It retries until it has the certificate, the request
// is denied, or ctx ends.
func (b Bootstrap) Run(ctx context.Context) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b.CA) {
		return errors.New("the cluster CA contains no PEM certificate")
	}
	c, err := client.Dial(client.Config{
		Endpoints: b.Endpoints, UserAgent: "keelson-node",
		TLS:   &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		Token: func() (string, error) { return b.Token, nil },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := os.MkdirAll(b.Dir, 0o700); err != nil {
		return err
	}
	slog.InfoContext(ctx, "joining the cluster", "node", b.Node, "apiservers", b.Endpoints)
	issued, err := first(ctx, c, b.Node, b.Dir)
	if err != nil {
		return fmt.Errorf("join as %s: %w", b.Node, err)
	}
	if err := writeFile(filepath.Join(b.Dir, identity.CAFile), b.CA, 0o644); err != nil {
		return err
	}
	return errors.Join(issued.store(b.Dir), forgetKey(b.Dir))
}

// first obtains the first certificate. If it is interrupted, the next call continues with
// the same request; if the request is denied, the next call makes a new one.
func first(ctx context.Context, c *client.Client, node, dir string) (issued, error) {
	key, err := pendingKey(dir)
	if err != nil {
		return issued{}, err
	}
	out, err := obtain(ctx, c, node, key)
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, forgetKey(dir))
	}
	return out, err
}

// pendingFile is the key of a request that has not been answered yet.
const pendingFile = "pending.key"

// pendingKey returns the key to join with. It is kept on disk until its certificate has
// been issued: the request for one key uses up a single-use token, but a process that starts
// again with the same key finds that request.
func pendingKey(dir string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, pendingFile)
	data, err := os.ReadFile(path)
	if err == nil {
		if block, _ := pem.Decode(data); block != nil {
			if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
				return key, nil
			}
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func forgetKey(dir string) error {
	err := os.Remove(filepath.Join(dir, pendingFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Renewal renews an identity's certificate.
type Renewal struct {
	Node   string
	Client *client.Client
	// Dir is the directory of the identity.
	Dir string
	// Leaf returns the current certificate.
	Leaf func() *x509.Certificate
}

// Run renews the certificate until ctx ends.
func (r Renewal) Run(ctx context.Context) error {
	for {
		leaf := r.Leaf()
		wait := time.Until(due(leaf, mrand.Float64())) //nolint:gosec // jitter needs no secrecy
		if wait > 0 {
			// Check again regularly, in case another process replaces the certificate.
			wait = min(wait, time.Hour)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
			continue
		}
		issued, err := renew(ctx, r.Client, r.Node)
		if err == nil {
			err = issued.store(r.Dir)
		}
		if err == nil {
			slog.InfoContext(ctx, "certificate renewed", "node", r.Node)
		} else if ctx.Err() == nil {
			slog.WarnContext(ctx, "certificate was not renewed", "node", r.Node, "expires", leaf.NotAfter, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Minute):
		}
	}
}

// due returns when to renew a certificate: after 70 to 90 percent of its lifetime, so that
// nodes do not all renew at once. jitter is in [0, 1).
func due(leaf *x509.Certificate, jitter float64) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(time.Duration(float64(life) * (0.7 + 0.2*jitter)))
}

// issued is a certificate and its key, in PEM.
type issued struct{ cert, key []byte }

// store writes the key before the certificate, so that every reader finds a matching pair
// or keeps the one that it has.
func (i issued) store(dir string) error {
	if _, err := tls.X509KeyPair(i.cert, i.key); err != nil {
		return fmt.Errorf("the issued certificate does not match the key: %w", err)
	}
	if err := writeFile(filepath.Join(dir, identity.KeyFile), i.key, 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, identity.CertFile), i.cert, 0o644)
}

func writeFile(name string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// renew obtains a certificate for a new key.
func renew(ctx context.Context, c *client.Client, node string) (issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issued{}, err
	}
	return obtain(ctx, c, node, key)
}

// obtain requests a certificate for a key and waits for it.
func obtain(ctx context.Context, c *client.Client, node string, key *ecdsa.PrivateKey) (issued, error) {
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
	}, key)
	if err != nil {
		return issued{}, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return issued{}, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return issued{}, err
	}
	sum := sha256.Sum256(public)
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "node-csr-" + lower(base64.RawURLEncoding.EncodeToString(sum[:]))},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}),
			SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}
	cert, err := sign(ctx, c, csr)
	if err != nil {
		return issued{}, err
	}
	return issued{cert: cert, key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})}, nil
}

// lower turns base64 text into a valid object name.
func lower(s string) string {
	out := []byte(s)
	for i, b := range out {
		switch {
		case b >= 'A' && b <= 'Z':
			out[i] = b + 'a' - 'A'
		case b == '_':
			out[i] = '-'
		}
	}
	for len(out) > 0 && out[len(out)-1] == '-' {
		out = out[:len(out)-1]
	}
	return string(out)
}

// sign creates a request and waits for its certificate.
func sign(ctx context.Context, c *client.Client, csr *certificatesv1.CertificateSigningRequest) ([]byte, error) {
	requests := client.For[*certificatesv1.CertificateSigningRequest](c)
	delay := 200 * time.Millisecond
	created := false
	for {
		var err error
		if !created {
			_, err = requests.Create(ctx, csr)
			if err == nil || apierrors.IsAlreadyExists(err) {
				created = true
			}
		}
		if created {
			var cert []byte
			var final bool
			cert, final, err = await(ctx, requests, csr.Name)
			if cert != nil || final {
				return cert, err
			}
		}
		if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
			return nil, err
		}
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "certificate has not been issued yet", "request", csr.Name, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(delay):
		}
		delay = min(2*delay, 10*time.Second)
	}
}

// await watches a request until it is answered. final is true if it was denied, failed or
// was deleted.
func await(ctx context.Context, requests client.Resource[*certificatesv1.CertificateSigningRequest], name string) (cert []byte, final bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	for ev, err := range requests.Watch(ctx, client.WatchOptions{Name: name, SendInitialEvents: true}) {
		if err != nil {
			return nil, false, err
		}
		if ev.Object == nil {
			continue
		}
		if ev.Type == client.Deleted {
			return nil, true, fmt.Errorf("certificate request %s was deleted", name)
		}
		for _, cond := range ev.Object.Status.Conditions {
			if (cond.Type == certificatesv1.CertificateDenied || cond.Type == certificatesv1.CertificateFailed) && cond.Status != corev1.ConditionFalse {
				return nil, true, fmt.Errorf("certificate request %s: %s: %s: %s", name, cond.Type, cond.Reason, cond.Message)
			}
		}
		if len(ev.Object.Status.Certificate) > 0 {
			return ev.Object.Status.Certificate, false, nil
		}
	}
	return nil, false, ctx.Err()
}
