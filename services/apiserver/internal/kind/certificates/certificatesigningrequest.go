package certificates

import (
	certificatesv1 "k8s.io/api/certificates/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// CertificateSigningRequest is the row of certificatesigningrequests. Its spec
// never changes; its certificate is written at status, its approval at approval.
func CertificateSigningRequest() *resource.Kind {
	k := row.Cluster[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](
		certificatesv1.SchemeGroupVersion, "certificatesigningrequests", "certificatesigningrequests")
	k.ShortNames = []string{"csr"}
	k.NoGeneration = true
	k.Fields = map[string]func(resource.Object) string{
		"spec.signerName": func(o resource.Object) string {
			return o.(*certificatesv1.CertificateSigningRequest).Spec.SignerName
		},
	}
	k.Rules = resource.Typed[*certificatesv1.CertificateSigningRequest]{
		PrepareCreate: func(c *certificatesv1.CertificateSigningRequest) {
			c.Status = certificatesv1.CertificateSigningRequestStatus{}
		},
		PrepareUpdate: func(c, old *certificatesv1.CertificateSigningRequest) {
			c.Spec = old.Spec
			c.Status = old.Status
		},
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*certificatesv1.CertificateSigningRequest]{
			PrepareUpdate: func(c, old *certificatesv1.CertificateSigningRequest) { c.Spec = old.Spec },
		}.Rules()),
		"approval": row.View(resource.Typed[*certificatesv1.CertificateSigningRequest]{
			PrepareUpdate: func(c, old *certificatesv1.CertificateSigningRequest) {
				c.Spec = old.Spec
				c.Status.Certificate = old.Status.Certificate
			},
		}.Rules()),
	}
	return k
}

// SetRequester records who asks for the certificate; what the client wrote there
// does not count. Admission calls it on create, before validation.
func SetRequester(c *certificatesv1.CertificateSigningRequest, u request.User) {
	c.Spec.Username, c.Spec.UID, c.Spec.Groups = u.Name, u.UID, u.Groups
	c.Spec.Extra = nil
	for key, values := range u.Extra {
		if c.Spec.Extra == nil {
			c.Spec.Extra = make(map[string]certificatesv1.ExtraValue, len(u.Extra))
		}
		c.Spec.Extra[key] = values
	}
}
