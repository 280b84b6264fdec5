package authn

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"keelson.dev/services/apiserver/internal/request"
)

// credentialID is the extra that identifies the credential rather than its bearer.
const credentialID = "authentication.kubernetes.io/credential-id"

// certificate is a cached certificate.
type certificate struct {
	user  request.User
	roots *x509.CertPool // the roots that it was verified against
}

// certificate verifies a client certificate and returns its user: the common name, with the
// organizations as groups.
func (a *Authenticator) certificate(chain []*x509.Certificate) (request.User, error) {
	leaf := chain[0]
	roots, now := a.cfg.Roots(), a.cfg.Now()
	key := sha256.Sum256(leaf.Raw)
	if c, ok := a.certificates.get(key, now); ok && c.roots == roots {
		return c.user, nil
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return request.User{}, certificateError(err, now)
	}
	if leaf.Subject.CommonName == "" {
		return request.User{}, errors.New("client certificate names no user (common name)")
	}
	u := request.User{
		Name:   leaf.Subject.CommonName,
		Groups: slices.Clone(leaf.Subject.Organization),
		Extra:  map[string][]string{credentialID: {"X509SHA256=" + hex.EncodeToString(key[:])}},

		Expires:    leaf.NotAfter,
		Credential: &shown{a: a, chain: chain},
	}
	a.certificates.put(key, certificate{user: u, roots: roots}, leaf.NotAfter)
	return u, nil
}

// shown is an accepted certificate. It becomes invalid when its CA is removed.
type shown struct {
	a     *Authenticator
	chain []*x509.Certificate
}

// Valid implements request.Credential.
func (s *shown) Valid(context.Context) bool {
	_, err := s.a.certificate(s.chain)
	return err == nil
}

// certificateError describes why a certificate was refused, without repeating text from the
// certificate itself.
func certificateError(err error, now time.Time) error {
	var unknown x509.UnknownAuthorityError
	var wrong x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return errors.New("client certificate is not signed by the cluster's CA")
	case errors.As(err, &wrong) && wrong.Reason == x509.Expired:
		if now.Before(wrong.Cert.NotBefore) {
			return fmt.Errorf("client certificate is not valid before %s", wrong.Cert.NotBefore.UTC().Format(time.RFC3339))
		}
		return fmt.Errorf("client certificate has expired at %s", wrong.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &wrong) && wrong.Reason == x509.IncompatibleUsage:
		return errors.New("certificate is not valid for client authentication")
	}
	return errors.New("client certificate cannot be verified")
}
