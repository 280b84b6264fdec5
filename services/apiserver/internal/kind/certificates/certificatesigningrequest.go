package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

type csr = certificatesv1.CertificateSigningRequest

// CertificateSigningRequest returns the row of certificatesigningrequests. The spec never
// changes, the certificate is written to the status subresource and the approval to the approval
// subresource. Admission records the requester.
func CertificateSigningRequest() *resource.Kind {
	k := row.Cluster[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](
		certificatesv1.SchemeGroupVersion, "certificatesigningrequests", "certificatesigningrequests")
	k.ShortNames = []string{"csr"}
	k.NoGeneration = true
	k.Columns, k.Cells = columns(), cells
	k.Fields = map[string]func(resource.Object) string{
		"spec.signerName": func(o resource.Object) string { return o.(*csr).Spec.SignerName },
	}
	k.Rules = resource.Typed[*csr]{
		PrepareCreate: func(c *csr) { c.Status = certificatesv1.CertificateSigningRequestStatus{} },
		PrepareUpdate: func(c, old *csr) {
			c.Spec = old.Spec
			c.Status = old.Status
		},
		// Any path segment is valid, because names such as "user:alice" are common.
		ValidateName: func(string, bool) []string { return nil },
		Validate:     validate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*csr]{
			PrepareUpdate: func(c, old *csr) {
				c.Spec = old.Spec
				keepDecision(c, old)
				stamp(c.Status.Conditions)
			},
			ValidateUpdate: validateStatus,
		}.Rules()),
		"approval": row.View(resource.Typed[*csr]{
			PrepareUpdate: func(c, old *csr) {
				c.Spec = old.Spec
				c.Status.Certificate = old.Status.Certificate
				stamp(c.Status.Conditions)
			},
			ValidateUpdate: validateApproval,
		}.Rules(), "spec"),
	}
	return k
}

// keepDecision keeps approvals and denials in an update of the status subresource.
func keepDecision(c, old *csr) {
	isDecision := func(x certificatesv1.CertificateSigningRequestCondition) bool {
		return x.Type == certificatesv1.CertificateApproved || x.Type == certificatesv1.CertificateDenied
	}
	if slices.ContainsFunc(old.Status.Conditions, isDecision) && !slices.ContainsFunc(c.Status.Conditions, isDecision) {
		for _, x := range old.Status.Conditions {
			if isDecision(x) {
				c.Status.Conditions = append(c.Status.Conditions, x)
			}
		}
	}
}

// stamp sets the missing times of conditions.
func stamp(conditions []certificatesv1.CertificateSigningRequestCondition) {
	now := metav1.Now()
	for i := range conditions {
		if conditions[i].LastTransitionTime.IsZero() {
			conditions[i].LastTransitionTime = now
		}
		if conditions[i].LastUpdateTime.IsZero() {
			conditions[i].LastUpdateTime = now
		}
	}
}

// legacySigner was the signer before signers had names.
const legacySigner = "kubernetes.io/legacy-unknown"

// minSeconds is the shortest lifetime that may be requested: ten minutes.
const minSeconds = 600

var usages = []certificatesv1.KeyUsage{
	certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment,
	certificatesv1.UsageKeyEncipherment, certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment,
	certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign, certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly,
	certificatesv1.UsageAny, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning,
	certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME, certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel,
	certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping, certificatesv1.UsageOCSPSigning,
	certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
}

func validate(c *csr) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	if err := parseRequest(c.Spec.Request); err != nil {
		e.Invalid(p.Child("request"), c.Spec.Request, fmt.Sprintf("%v", err))
	}
	validateUsages(&e, c.Spec.Usages, p.Child("usages"))
	validateSigner(&e, c.Spec.SignerName, p.Child("signerName"))
	if s := c.Spec.ExpirationSeconds; s != nil && *s < minSeconds {
		e.Invalid(p.Child("expirationSeconds"), *s, fmt.Sprintf("may not specify a duration less than %d seconds (10 minutes)", minSeconds))
	}
	return e.List
}

func parseRequest(data []byte) error {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return fmt.Errorf("PEM block type must be CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	return r.CheckSignature()
}

func validateUsages(e *check.Errors, list []certificatesv1.KeyUsage, p *field.Path) {
	if len(list) == 0 {
		e.Required(p, "")
	}
	var seen check.Seen
	for i, u := range list {
		if !slices.Contains(usages, u) {
			allowed := slices.Clone(usages)
			slices.Sort(allowed)
			e.List = append(e.List, field.NotSupported(p.Index(i), u, allowed))
		}
		if seen.Add(string(u)) {
			e.Duplicate(p.Index(i), u)
		}
	}
}

// validateSigner checks a signer name such as "example.com/signer": a domain of at least two
// labels, and a path.
func validateSigner(e *check.Errors, name string, p *field.Path) {
	if name == "" {
		e.Required(p, "")
		return
	}
	domain, path, found := strings.Cut(name, "/")
	if !found || strings.Contains(path, "/") {
		e.Invalid(p, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	validateLabels(e, domain, p, check.Label)
	validateLabels(e, path, p, check.Subdomain)
	if name == legacySigner {
		e.Invalid(p, name, "the legacy signerName is not allowed via this API version")
	}
	if strings.Count(domain, ".") < 1 {
		e.Invalid(p, domain, "should be a domain with at least two segments separated by dots")
	}
}

// validateLabels checks the dot-separated parts of a name.
func validateLabels(e *check.Errors, name string, p *field.Path, valid func(string) []string) {
	for label := range strings.SplitSeq(name, ".") {
		for _, m := range valid(label) {
			e.Invalid(p, name, fmt.Sprintf("validating label %q: %s", label, m))
		}
	}
}

func validateConditions(e *check.Errors, c *csr) {
	p := field.NewPath("status", "conditions")
	seen := map[certificatesv1.RequestConditionType]bool{}
	for i, x := range c.Status.Conditions {
		at := p.Index(i)
		if x.Type == "" {
			e.Required(at.Child("type"), "")
		}
		mustHold := x.Type == certificatesv1.CertificateApproved || x.Type == certificatesv1.CertificateDenied || x.Type == certificatesv1.CertificateFailed
		switch {
		case x.Status == "":
			e.Required(at.Child("status"), "")
		case mustHold && x.Status != corev1.ConditionTrue:
			e.List = append(e.List, field.NotSupported(at.Child("status"), x.Status, []corev1.ConditionStatus{corev1.ConditionTrue}))
		case !mustHold:
			check.Supported(e, at, "status", x.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)
		}
		if seen[x.Type] {
			e.Duplicate(at.Child("type"), x.Type)
		}
		seen[x.Type] = true
	}
	if seen[certificatesv1.CertificateApproved] && seen[certificatesv1.CertificateDenied] {
		const approved, denied = `conditions[{"type": "Approved"}]`, `conditions[{"type": "Denied"}]`
		e.Invalid(p, "{"+approved+", "+denied+"}", "must specify at most one of: `"+approved+"`, `"+denied+"`")
	}
}

func validateStatus(c, old *csr) field.ErrorList {
	var e check.Errors
	validateConditions(&e, c)
	at := field.NewPath("status", "certificate")
	switch {
	case len(old.Status.Certificate) > 0 && string(c.Status.Certificate) != string(old.Status.Certificate):
		e.Forbidden(at, "updates may not modify existing certificate content")
	case len(c.Status.Certificate) > 0:
		if err := parseCertificates(c.Status.Certificate); err != nil {
			e.Invalid(at, "<certificate data>", err.Error())
		}
	}
	decision(&e, c, old, true)
	return e.List
}

// parseCertificates checks a certificate chain in PEM.
func parseCertificates(data []byte) error {
	count := 0
	for len(data) > 0 {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		}
		if len(block.Headers) > 0 {
			return fmt.Errorf("no PEM block headers are permitted")
		}
		parsed, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return err
		}
		count += len(parsed)
	}
	if count == 0 {
		return fmt.Errorf("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

// decision checks that approvals and denials are not removed, nor added through the wrong
// subresource.
func decision(e *check.Errors, c, old *csr, atStatus bool) {
	p := field.NewPath("status", "conditions")
	for _, t := range []certificatesv1.RequestConditionType{
		certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed,
	} {
		was, is := find(old, t), find(c, t)
		switch {
		case was && !is:
			e.Forbidden(p, "updates may not remove a condition of type \""+string(t)+"\"")
		case !was && is && atStatus && t != certificatesv1.CertificateFailed:
			e.Forbidden(p, "updates may not add a condition of type \""+string(t)+"\"")
		}
	}
}

func find(c *csr, t certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(c.Status.Conditions, func(x certificatesv1.CertificateSigningRequestCondition) bool { return x.Type == t })
}

func validateApproval(c, old *csr) field.ErrorList {
	var e check.Errors
	validateConditions(&e, c)
	decision(&e, c, old, false)
	return e.List
}

func columns() []metav1.TableColumnDefinition {
	spec := certificatesv1.CertificateSigningRequestSpec{}
	return []metav1.TableColumnDefinition{
		column.AgeColumn(),
		column.Text("SignerName", column.Doc(spec, "signerName")),
		column.Text("Requestor", column.Doc(spec, "request")),
		column.Text("RequestedDuration", column.Doc(spec, "expirationSeconds")),
		column.Text("Condition", column.Doc(certificatesv1.CertificateSigningRequestStatus{}, "conditions")),
	}
}

func cells(o resource.Object) []any {
	c := o.(*csr)
	asked := column.None
	if s := c.Spec.ExpirationSeconds; s != nil {
		asked = duration.HumanDuration(time.Duration(*s) * time.Second)
	}
	return []any{column.Age(c.CreationTimestamp), column.Or(c.Spec.SignerName, column.None), c.Spec.Username, asked, state(c)}
}

func state(c *csr) string {
	var s string
	switch approved, denied := find(c, certificatesv1.CertificateApproved), find(c, certificatesv1.CertificateDenied); {
	case denied:
		s = "Denied"
	case approved:
		s = "Approved"
	default:
		s = "Pending"
	}
	if find(c, certificatesv1.CertificateFailed) {
		s += ",Failed"
	}
	if len(c.Status.Certificate) > 0 {
		s += ",Issued"
	}
	return s
}
