package csr

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/testkit"
	"keelson.dev/services/internal/identity"
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

// rights answers reviews: by user and subresource.
type rights map[string]bool

func (r rights) may(_ context.Context, csr *certificatesv1.CertificateSigningRequest, subresource string) (bool, error) {
	return r[csr.Spec.Username+" "+subresource], nil
}

func token(id string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-" + id}, Type: corev1.SecretTypeBootstrapToken, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func TestDecides(t *testing.T) {
	const kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
	bootstrap := []string{"system:bootstrappers", "system:authenticated"}
	nodes := []string{"system:nodes"}
	auth := certificatesv1.UsageClientAuth
	may := rights{
		"system:bootstrap:abcdef nodeclient": true, "system:bootstrap:onceon nodeclient": true, "system:bootstrap:usedup nodeclient": true, "system:bootstrap:nobody nodeclient": true,
		"system:node:n selfnodeclient": true, "system:node:lives selfnodeclient": true, "jane nodeclient": true,
	}
	w := testkit.Start(t)
	testkit.Create(w, token("abcdef", nil))
	testkit.Create(w, token("onceon", map[string]string{"single-use": "true"}))
	used := token("usedup", map[string]string{"single-use": "true"})
	used.Annotations = map[string]string{usedBy: "another"}
	testkit.Create(w, used)
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "lives"}, Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1"}}})
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "beats"}})
	testkit.Create(w, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: "beats"}})
	testkit.Create(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "planned"}})
	w.Run(build(w.Cluster, nil, time.Now, may.may))
	only := func(c *certificatesv1.CertificateSigningRequest, node string) *certificatesv1.CertificateSigningRequest {
		c.Spec.Extra = map[string]certificatesv1.ExtraValue{identity.BootstrapNode: {node}}
		return c
	}
	const approved, waits = "Approved AutoApproved", ""
	for name, c := range map[string]struct {
		csr  *certificatesv1.CertificateSigningRequest
		want string
	}{
		"bootstrap":            {object("", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "system:node:n"), auth), approved},
		"renewal":              {object("", kubelet, "system:node:n", nodes, request(t, "system:node:n"), auth), approved},
		"renewal-of-a-live":    {object("", kubelet, "system:node:lives", nodes, request(t, "system:node:lives"), auth), approved},
		"somebody-with-rights": {object("", kubelet, "jane", []string{"team"}, request(t, "system:node:n"), auth), approved},
		"planned-node":         {object("", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "system:node:planned"), auth), approved},
		"no-rights":            {object("", kubelet, "system:bootstrap:member", append(bootstrap, "system:bootstrappers:keelson:apiserver"), request(t, "system:node:n"), auth), waits},
		"of-another-node":      {object("", kubelet, "system:node:m", nodes, request(t, "system:node:n"), auth), waits},
		"own-name-no-rights":   {object("", kubelet, "system:node:m", nil, request(t, "system:node:m"), auth), waits},
		"of-an-admin":          {object("", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "admin"), auth), waits},
		"of-somebody":          {object("", kubelet, "joe", []string{"team"}, request(t, "system:node:n"), auth), waits},
		"with-a-server-name":   {object("", kubelet, "system:node:n", nodes, request(t, "system:node:n", "host"), auth), waits},
		"another-usage":        {object("", kubelet, "system:node:n", nodes, request(t, "system:node:n"), auth, certificatesv1.UsageServerAuth), waits},
		"another-signer":       {object("", certificatesv1.KubeAPIServerClientSignerName, "system:node:n", nodes, request(t, "system:node:n"), auth), waits},
		"live-node":            {object("", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "system:node:lives"), auth), "Denied NodeExists"},
		"node-with-a-lease":    {object("", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "system:node:beats"), auth), "Denied NodeExists"},
		"token-of-the-node":    {only(object("", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "system:node:n"), auth), "n"), approved},
		"token-of-another":     {only(object("", kubelet, "system:bootstrap:abcdef", bootstrap, request(t, "system:node:n"), auth), "m"), "Denied OtherNode"},
		"revoked-token":        {object("", kubelet, "system:bootstrap:nobody", bootstrap, request(t, "system:node:n"), auth), "Denied TokenRevoked"},
		"used-token":           {object("", kubelet, "system:bootstrap:usedup", bootstrap, request(t, "system:node:n"), auth), "Denied TokenUsed"},
	} {
		t.Run(name, func(t *testing.T) {
			c.csr.Name = name
			testkit.Create(w, c.csr)
			got := func() string {
				for _, x := range testkit.Get[*certificatesv1.CertificateSigningRequest](w, "", name).Status.Conditions {
					return string(x.Type) + " " + x.Reason
				}
				return ""
			}
			if c.want == waits {
				w.Never("decided", func() bool { return got() != waits })
				return
			}
			w.Eventually(c.want, func() bool { return got() == c.want })
		})
	}
	denied := testkit.Get[*certificatesv1.CertificateSigningRequest](w, "", "live-node").Status.Conditions[0].Message
	if want := "kubectl delete node lives"; !strings.Contains(denied, want) {
		t.Errorf("denial message %q, want the remedy %q in it", denied, want)
	}
}

// TestTokenForOneUse gives two requests of one token, of which one is approved.
func TestTokenForOneUse(t *testing.T) {
	w := testkit.Start(t)
	w.Run(build(w.Cluster, nil, time.Now, rights{"system:bootstrap:onceon nodeclient": true}.may))
	testkit.Create(w, token("onceon", map[string]string{"single-use": "true", "expiration": time.Now().Add(24 * time.Hour).Format(time.RFC3339)}))
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		testkit.Create(w, object(name, certificatesv1.KubeAPIServerClientKubeletSignerName, "system:bootstrap:onceon", []string{"system:bootstrappers"}, request(t, "system:node:"+name), certificatesv1.UsageClientAuth))
	}
	approved := ""
	w.Eventually("all are decided", func() bool {
		decided := 0
		for _, name := range names {
			c := testkit.Get[*certificatesv1.CertificateSigningRequest](w, "", name)
			if has(c, certificatesv1.CertificateDenied) != nil {
				decided++
			}
			if has(c, certificatesv1.CertificateApproved) != nil {
				decided, approved = decided+1, string(c.UID)
			}
		}
		return decided == len(names)
	})
	denied := 0
	for _, name := range names {
		if has(testkit.Get[*certificatesv1.CertificateSigningRequest](w, "", name), certificatesv1.CertificateDenied) != nil {
			denied++
		}
	}
	if denied != len(names)-1 {
		t.Errorf("%d of %d were denied", denied, len(names))
	}
	s := testkit.Get[*corev1.Secret](w, "kube-system", "bootstrap-token-onceon")
	if s.Annotations[usedBy] != approved {
		t.Errorf("used by %q, want %q", s.Annotations[usedBy], approved)
	}
	if until, err := time.Parse(time.RFC3339, string(s.Data["expiration"])); err != nil || time.Until(until) > readOn {
		t.Errorf("it expires at %s, %v", until, err)
	}
}

// TestReview sends the review that the apiserver answers.
func TestReview(t *testing.T) {
	w := testkit.Start(t)
	var asked []string
	w.Server.Admit(func(verb string, obj client.Object) error {
		if r, ok := obj.(*authorizationv1.SubjectAccessReview); ok {
			a := r.Spec.ResourceAttributes
			asked = append(asked, strings.Join([]string{r.Spec.User, strings.Join(r.Spec.Groups, ","), a.Verb, a.Group, a.Resource, a.Subresource}, " "))
			r.Status.Allowed = a.Subresource == "nodeclient"
		}
		return nil
	})
	r := &reconciler{Cluster: w.Cluster}
	c := object("x", "", "jane", []string{"team"}, nil)
	for subresource, want := range map[string]bool{"nodeclient": true, "selfnodeclient": false} {
		asked = nil
		ok, err := r.review(t.Context(), c, subresource)
		if err != nil || ok != want || len(asked) != 1 || asked[0] != "jane team create certificates.k8s.io certificatesigningrequests "+subresource {
			t.Errorf("%s: %t, %v, asked %q", subresource, ok, err, asked)
		}
	}
}

// TestReservedNames is what the signer refuses, whoever approved it.
func TestReservedNames(t *testing.T) {
	auth, serve := certificatesv1.UsageClientAuth, certificatesv1.UsageServerAuth
	const client, kubelet, serving = certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName
	for _, c := range []struct {
		signer, cn, organization string
		usage                    certificatesv1.KeyUsage
		host                     string
		want                     string
	}{
		{client, "jane", "devs", auth, "", ""},
		{client, "jane", "system:masters", auth, "", `organization "system:masters" is reserved`},
		{client, "jane", "system:nodes", auth, "", "is reserved"},
		{client, "system:node:n", "devs", auth, "", `common name "system:node:n" is reserved`},
		{client, "system:kube-scheduler", "devs", auth, "", "is reserved"},
		{client, "system:serviceaccount:a:b", "devs", auth, "", "is reserved"},
		{client, "system:anonymous", "devs", auth, "", "is reserved"},
		{client, "kube-apiserver", "devs", auth, "", "is reserved"},
		{client, "kubernetes-admin", "devs", auth, "", "is reserved"},
		{client, "keelson-peer", "devs", auth, "", "is reserved"},
		{kubelet, "system:node:n", "system:nodes", auth, "", ""},
		{kubelet, "system:node:", "system:nodes", auth, "", "does not begin"},
		{kubelet, "system:node:n", "system:masters", auth, "", "organization is not"},
		{kubelet, "system:kube-scheduler", "system:nodes", auth, "", "does not begin"},
		{kubelet, "kube-apiserver", "system:nodes", auth, "", "does not begin"},
		{serving, "system:node:n", "system:nodes", serve, "host", ""},
		{serving, "kube-apiserver", "system:nodes", serve, "host", "does not begin"},
		{"kubernetes.io/legacy-unknown", "jane", "devs", auth, "", "not ours"},
		{"kubernetes.io/other", "jane", "devs", auth, "", "not ours"},
	} {
		req := &x509.CertificateRequest{Subject: pkix.Name{CommonName: c.cn, Organization: []string{c.organization}}}
		if c.host != "" {
			req.DNSNames = []string{c.host}
		}
		err := Permits(object("x", c.signer, "admin", nil, nil, c.usage), req)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s of %s: got %v, want %q", c.signer, c.cn, c.organization, err, c.want)
		}
	}
}

func TestFromRequestToCertificate(t *testing.T) {
	a, pool := authority(t)
	w := testkit.Start(t)
	w.Run(build(w.Cluster, a, time.Now, rights{"system:bootstrap:abcdef nodeclient": true}.may))
	testkit.Create(w, token("abcdef", nil))
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
	w.Run(New(w.Cluster, Options{Authority: a}))
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
	w.Run(build(w.Cluster, nil, func() time.Time { return pending.CreationTimestamp.Add(keepSettled + time.Minute) }, nil))
	w.Eventually("the denied request is deleted", func() bool { return !testkit.Exists[*certificatesv1.CertificateSigningRequest](w, "", "denied") })
	if !testkit.Exists[*certificatesv1.CertificateSigningRequest](w, "", "pending") {
		t.Error("a request that still waits was removed")
	}
}
