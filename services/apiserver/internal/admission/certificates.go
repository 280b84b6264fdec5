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
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/internal/identity"
)

// Authorizer decides whether a user has a right that a plugin asks about.
type Authorizer interface {
	Authorize(ctx context.Context, a *request.Attributes) (allowed bool, reason string, err error)
}

// Certificates records the user that requests a certificate, refuses reserved names, and allows
// approval and signing only to users with that right on the signer.
type Certificates struct {
	State      State
	Authorizer Authorizer
	// Reserved are common names that are refused in addition to those of identity.Reserved.
	Reserved []string
}

// Admit implements Mutator. The requester is the authenticated user, whatever the request says.
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
		return p.subject(ctx, a, csr)
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

// subject refuses requests for names that only the cluster itself may issue, whichever signer
// they are for. Kubernetes' CertificateSubjectRestriction refuses only system:masters, and only
// for one signer.
func (p *Certificates) subject(ctx context.Context, a *Attributes, csr *certificatesv1.CertificateSigningRequest) error {
	parsed, err := parseRequest(csr)
	if errors.Is(err, errNoRequest) {
		return nil // refused by validation
	}
	if err != nil {
		return apierrors.NewForbidden(a.GroupResource(), a.Name, fmt.Errorf("failed to parse CSR: %w", err))
	}
	signer := csr.Spec.SignerName
	if signer == certificatesv1.KubeAPIServerClientSignerName && slices.Contains(parsed.Subject.Organization, "system:masters") {
		return fmt.Errorf("use of %s signer with system:masters group is not allowed", signer)
	}
	if signer != certificatesv1.KubeAPIServerClientKubeletSignerName && signer != certificatesv1.KubeletServingSignerName {
		if err := identity.Reserved(parsed.Subject.CommonName, parsed.Subject.Organization, p.Reserved...); err != nil {
			return fmt.Errorf("signer %s: %w", signer, err)
		}
		return p.bootstrap(ctx, a, signer, "")
	}
	node, err := identity.NodeSubject(parsed.Subject.CommonName, parsed.Subject.Organization)
	if err != nil {
		return fmt.Errorf("signer %s: %w", signer, err)
	}
	return p.bootstrap(ctx, a, signer, node)
}

// bootstrap restricts the bearer of a bootstrap token to client certificates for new nodes, and
// to the node that the token names, if it names one.
func (p *Certificates) bootstrap(ctx context.Context, a *Attributes, signer, node string) error {
	if !slices.Contains(a.User.Groups, "system:bootstrappers") {
		return nil
	}
	if signer != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return fmt.Errorf("a bootstrap token may only request certificates of signer %s", certificatesv1.KubeAPIServerClientKubeletSignerName)
	}
	if only, ok := a.User.Extra[identity.BootstrapNode]; ok && !slices.Equal(only, []string{node}) {
		return fmt.Errorf("this bootstrap token is for node %q, not for %q", strings.Join(only, ","), node)
	}
	lives, err := p.nodeLives(ctx, node)
	if err != nil {
		return err
	}
	if lives {
		return fmt.Errorf("node %[1]q exists already and has a certificate: choose another name, or remove it first with `kubectl delete node %[1]s`", node)
	}
	return nil
}

// nodeLives reports whether a node has ever reported to its Node object: one that was created by
// hand for a machine to come has neither a Lease nor a kubelet version.
func (p *Certificates) nodeLives(ctx context.Context, name string) (bool, error) {
	o, ok, err := p.State.GetFresh(ctx, "", "nodes", "", name)
	if err != nil || !ok {
		return false, err
	}
	if n, is := o.(*corev1.Node); is && n.Status.NodeInfo.KubeletVersion != "" {
		return true, nil
	}
	_, ok, err = p.State.GetFresh(ctx, coordinationv1.GroupName, "leases", corev1.NamespaceNodeLease, name)
	return ok, err
}

var errNoRequest = errors.New("PEM block type must be CERTIFICATE REQUEST")

func parseRequest(csr *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errNoRequest
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

// may reports whether the user has the verb on the signer or on all signers of its domain.
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
