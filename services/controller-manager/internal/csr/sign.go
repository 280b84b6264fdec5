package csr

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"keelson.dev/services/internal/identity"
)

const (
	// lifetime is how long a certificate lasts unless the request asks for less.
	lifetime = 365 * 24 * time.Hour
	// shortest is the shortest lifetime that a request may ask for, as in Kubernetes.
	shortest = 10 * time.Minute
	// backdate allows for clocks that are slow.
	backdate = 5 * time.Minute
)

// Authority signs with the cluster's key.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// LoadAuthority reads ca.crt and ca.key from a directory.
func LoadAuthority(dir string) (*Authority, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return nil, fmt.Errorf("%s/ca.crt: no certificate in PEM form", dir)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s/ca.crt: %w", dir, err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	if block, _ = pem.Decode(keyPEM); block == nil {
		return nil, fmt.Errorf("%s/ca.key: no key in PEM form", dir)
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s/ca.key: %w", dir, err)
	}
	return &Authority{cert: cert, key: key}, nil
}

func parseKey(der []byte) (crypto.Signer, error) {
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("not a private key")
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("not a key that can sign")
	}
	return s, nil
}

// parse reads a request's CSR and checks that it is signed by its own key.
func parse(csr *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("spec.request is no certificate request in PEM form")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("spec.request: %w", err)
	}
	return req, req.CheckSignature()
}

// usages maps the API's names to X.509's.
var usages = map[certificatesv1.KeyUsage]x509.KeyUsage{
	certificatesv1.UsageSigning:           x509.KeyUsageDigitalSignature,
	certificatesv1.UsageDigitalSignature:  x509.KeyUsageDigitalSignature,
	certificatesv1.UsageKeyEncipherment:   x509.KeyUsageKeyEncipherment,
	certificatesv1.UsageDataEncipherment:  x509.KeyUsageDataEncipherment,
	certificatesv1.UsageKeyAgreement:      x509.KeyUsageKeyAgreement,
	certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment,
}

var extended = map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
	certificatesv1.UsageClientAuth: x509.ExtKeyUsageClientAuth,
	certificatesv1.UsageServerAuth: x509.ExtKeyUsageServerAuth,
}

// Permits checks a request against its signer's rules, as Kubernetes documents them. An
// error explains why the request will never be signed.
func Permits(csr *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest) error {
	allow := func(list ...certificatesv1.KeyUsage) error {
		for _, u := range csr.Spec.Usages {
			if !slices.Contains(list, u) {
				return fmt.Errorf("usage %q is not permitted by signer %s", u, csr.Spec.SignerName)
			}
		}
		return nil
	}
	has := func(u certificatesv1.KeyUsage) bool { return slices.Contains(csr.Spec.Usages, u) }
	kubelet := func() error {
		if _, err := identity.NodeSubject(req.Subject.CommonName, req.Subject.Organization); err != nil {
			return err
		}
		if len(req.EmailAddresses) > 0 || len(req.URIs) > 0 {
			return errors.New("email and URI subject alternative names are not permitted")
		}
		return nil
	}
	switch csr.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientSignerName:
		if !has(certificatesv1.UsageClientAuth) {
			return errors.New(`usages must contain "client auth"`)
		}
		return errors.Join(identity.Reserved(req.Subject.CommonName, req.Subject.Organization),
			allow(certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment))
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		if len(req.DNSNames) > 0 || len(req.IPAddresses) > 0 {
			return errors.New("DNS and IP subject alternative names are not permitted")
		}
		if !has(certificatesv1.UsageClientAuth) {
			return errors.New(`usages must contain "client auth"`)
		}
		return errors.Join(kubelet(), allow(certificatesv1.UsageClientAuth, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment))
	case certificatesv1.KubeletServingSignerName:
		if len(req.DNSNames) == 0 && len(req.IPAddresses) == 0 {
			return errors.New("at least one DNS or IP subject alternative name is required")
		}
		if !has(certificatesv1.UsageServerAuth) {
			return errors.New(`usages must contain "server auth"`)
		}
		return errors.Join(kubelet(), allow(certificatesv1.UsageServerAuth, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment))
	}
	return fmt.Errorf("signer %s is not ours", csr.Spec.SignerName)
}

// Sign returns the certificate as PEM.
func (a *Authority) Sign(csr *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest, now time.Time) ([]byte, error) {
	length := lifetime
	if s := csr.Spec.ExpirationSeconds; s != nil {
		length = max(shortest, min(length, time.Duration(*s)*time.Second))
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      req.Subject,
		DNSNames:     req.DNSNames, IPAddresses: req.IPAddresses, EmailAddresses: req.EmailAddresses, URIs: req.URIs,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(length),
		BasicConstraintsValid: true,
	}
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	for _, u := range csr.Spec.Usages {
		tmpl.KeyUsage |= usages[u]
		if e, ok := extended[u]; ok {
			tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, e)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, req.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
