package admission

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
)

// Authorizer decides on a right that a plugin asks about.
type Authorizer interface {
	Authorize(ctx context.Context, a *request.Attributes) (allowed bool, reason string, err error)
}

// Certificates records who asks for a certificate, and lets only those approve
// and sign who may for that signer.
type Certificates struct{ Authorizer Authorizer }

// Admit implements Mutator: who asks is what the server knows, not what the
// request says.
func (p *Certificates) Admit(_ context.Context, a *Attributes) error {
	csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Operation != Create {
		return nil
	}
	csr.Spec.Username, csr.Spec.UID = a.User.Name, a.User.UID
	csr.Spec.Groups = slices.Clone(a.User.Groups)
	csr.Spec.Extra = nil
	if len(a.User.Extra) > 0 {
		csr.Spec.Extra = make(map[string]certificatesv1.ExtraValue, len(a.User.Extra))
		for k, v := range a.User.Extra {
			csr.Spec.Extra[k] = slices.Clone(v)
		}
	}
	return nil
}

// Validate implements Validator.
func (p *Certificates) Validate(ctx context.Context, a *Attributes) error {
	csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return nil
	}
	switch {
	case a.Operation == Create:
		return checkMasters(a, csr)
	case a.Operation == Update && a.Subresource == "approval":
		if !p.may(ctx, a.User, "approve", csr.Spec.SignerName) {
			return fmt.Errorf("user not permitted to approve requests with signerName %q", csr.Spec.SignerName)
		}
	case a.Operation == Update && a.Subresource == "status":
		old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
		if ok && bytes.Equal(old.Status.Certificate, csr.Status.Certificate) {
			return nil
		}
		if !p.may(ctx, a.User, "sign", csr.Spec.SignerName) {
			return fmt.Errorf("user not permitted to sign requests with signerName %q", csr.Spec.SignerName)
		}
	}
	return nil
}

// checkMasters keeps anybody from asking for a certificate that may do
// everything (CertificateSubjectRestriction).
func checkMasters(a *Attributes, csr *certificatesv1.CertificateSigningRequest) error {
	if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	parsed, err := parseRequest(csr)
	if errors.Is(err, errNoRequest) {
		return nil // refused by validation
	}
	if err != nil {
		return apierrors.NewForbidden(a.GroupResource(), a.Name, fmt.Errorf("failed to parse CSR: %w", err))
	}
	if slices.Contains(parsed.Subject.Organization, "system:masters") {
		return fmt.Errorf("use of %s signer with system:masters group is not allowed", csr.Spec.SignerName)
	}
	return nil
}

var errNoRequest = errors.New("PEM block type must be CERTIFICATE REQUEST")

func parseRequest(csr *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errNoRequest
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

// may asks for the verb on the signer or on all of its domain.
func (p *Certificates) may(ctx context.Context, u request.User, verb, signer string) bool {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		ok, _, err := p.Authorizer.Authorize(ctx, &request.Attributes{
			User: u, Verb: verb, Name: name,
			Resource: certificatesv1.SchemeGroupVersion.WithResource("signers"),
		})
		if ok && err == nil {
			return true
		}
	}
	return false
}
