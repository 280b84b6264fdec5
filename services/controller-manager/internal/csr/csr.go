// Package csr approves the certificate requests of nodes, signs approved requests, and
// deletes old ones.
//
// Like Kubernetes' csrapproving controller, it approves requests for a node's client
// certificate if the requester may create certificatesigningrequests/nodeclient or, for
// the requester's own name, certificatesigningrequests/selfnodeclient. A request made
// with a bootstrap token is denied if the token names another node or has been used up,
// or if the node exists already.
//
// It must never sign a request that is not approved, nor one for a signer that is not
// Kubernetes' own.
package csr

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/identity"
)

// How long requests are kept, as in Kubernetes.
const (
	keepSettled = time.Hour
	keepPending = 24 * time.Hour
)

// askAgain is how often the permissions of a node certificate's requester are reviewed
// again while they do not suffice.
const askAgain = time.Minute

type reconciler struct {
	*cluster.Cluster

	SigningRequests *client.Cache[*certificatesv1.CertificateSigningRequest]

	requests  client.Resource[*certificatesv1.CertificateSigningRequest]
	nodes     client.Resource[*corev1.Node]
	leases    client.Resource[*coordinationv1.Lease]
	secrets   client.Resource[*corev1.Secret]
	authority *Authority
	may       func(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, subresource string) (bool, error)
	now       func() time.Time
}

// New returns the controller. Without an authority it approves and deletes, but does
// not sign.
func New(s *cluster.Cluster, o Options) controller.Controller {
	return build(s, o.Authority, time.Now, nil)
}

// build is New with may in place of the subject access review, for tests.
func build(s *cluster.Cluster, a *Authority, now func() time.Time, may func(context.Context, *certificatesv1.CertificateSigningRequest, string) (bool, error)) controller.Controller {
	r := &reconciler{
		Cluster: s, SigningRequests: cluster.Of[*certificatesv1.CertificateSigningRequest](s),
		requests: client.For[*certificatesv1.CertificateSigningRequest](s.Client), authority: a, now: now,
		nodes: client.For[*corev1.Node](s.Client), leases: client.For[*coordinationv1.Lease](s.Client), secrets: client.For[*corev1.Secret](s.Client),
	}
	if r.may = may; may == nil {
		r.may = r.review
	}
	return controller.Controller{
		Name: "certificate-signing", Workers: 2, Reconcile: r.reconcile,
		Sources: []controller.Source{controller.Objects(r.SigningRequests)},
	}
}

func has(csr *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) *certificatesv1.CertificateSigningRequestCondition {
	i := slices.IndexFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &csr.Status.Conditions[i]
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	csr, ok := r.SigningRequests.Get("", key.Name)
	if !ok || csr.DeletionTimestamp != nil {
		return controller.Result{}, nil
	}
	now := r.now()
	ends := Ends(csr)
	if !now.Before(ends) {
		err := r.requests.Delete(ctx, "", csr.Name, client.UID(csr.UID))
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			err = nil
		}
		return controller.Result{}, err
	}
	wait := controller.Result{RequeueAfter: ends.Sub(now)}
	approved := has(csr, certificatesv1.CertificateApproved) != nil
	if has(csr, certificatesv1.CertificateDenied) != nil || has(csr, certificatesv1.CertificateFailed) != nil || len(csr.Status.Certificate) > 0 {
		return wait, nil
	}
	req, err := parse(csr)
	if err != nil {
		return wait, r.fail(ctx, csr, approved, "SignerValidationFailure", err)
	}
	if !approved {
		decided, err := r.decide(ctx, csr, req)
		if !decided && err == nil && recognized(csr, req) {
			wait.RequeueAfter = min(wait.RequeueAfter, askAgain) // a binding may come
		}
		return wait, err
	}
	if !strings.HasPrefix(csr.Spec.SignerName, "kubernetes.io/") || r.authority == nil {
		return wait, nil
	}
	if err := Permits(csr, req); err != nil {
		return wait, r.fail(ctx, csr, approved, "SignerValidationFailure", err)
	}
	return wait, r.sign(ctx, csr, req, now)
}

// Ends returns when a request has been kept for long enough.
func Ends(csr *certificatesv1.CertificateSigningRequest) time.Time {
	settled := csr.CreationTimestamp.Time
	for _, c := range csr.Status.Conditions {
		if c.LastUpdateTime.After(settled) {
			settled = c.LastUpdateTime.Time
		}
	}
	switch {
	case has(csr, certificatesv1.CertificateDenied) != nil, has(csr, certificatesv1.CertificateFailed) != nil, len(csr.Status.Certificate) > 0:
		return settled.Add(keepSettled)
	}
	return settled.Add(keepPending)
}

// recognized reports whether a request is one for a node's client certificate.
func recognized(csr *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest) bool {
	return csr.Spec.SignerName == certificatesv1.KubeAPIServerClientKubeletSignerName && Permits(csr, req) == nil
}

// decide approves or denies a request for a node's client certificate. decided is false
// if the decision is left to a person.
func (r *reconciler) decide(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest) (decided bool, err error) {
	if !recognized(csr, req) {
		return false, nil
	}
	if csr.Spec.Username == req.Subject.CommonName {
		if ok, err := r.may(ctx, csr, "selfnodeclient"); ok || err != nil {
			return ok, r.settle(ctx, csr, certificatesv1.CertificateApproved, "AutoApproved", "Auto approving self kubelet client certificate after SubjectAccessReview.", err)
		}
	}
	if ok, err := r.may(ctx, csr, "nodeclient"); !ok || err != nil {
		return false, err
	}
	id, isToken := strings.CutPrefix(csr.Spec.Username, "system:bootstrap:")
	if isToken {
		reason, message, err := r.refuse(ctx, csr, req, id)
		if err != nil {
			return false, err
		}
		if reason != "" {
			return true, r.settle(ctx, csr, certificatesv1.CertificateDenied, reason, message, nil)
		}
	}
	return true, r.settle(ctx, csr, certificatesv1.CertificateApproved, "AutoApproved", "Auto approving kubelet client certificate after SubjectAccessReview.", nil)
}

// refuse returns why a request made with a bootstrap token is denied; an empty reason
// means that it is not. A single-use token is used up by that.
func (r *reconciler) refuse(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest, id string) (reason, message string, err error) {
	node, err := identity.NodeSubject(req.Subject.CommonName, req.Subject.Organization)
	if err != nil {
		return "NotANode", err.Error(), nil
	}
	if only, ok := csr.Spec.Extra[identity.BootstrapNode]; ok && !slices.Equal([]string(only), []string{node}) {
		return "OtherNode", fmt.Sprintf("bootstrap token %s is for node %q, not for %q", id, strings.Join(only, ","), node), nil
	}
	lives, err := r.lives(ctx, node)
	if err != nil {
		return "", "", err
	}
	if lives {
		return "NodeExists", fmt.Sprintf("node %[1]q exists already and has a certificate: choose another name, or remove it first with `kubectl delete node %[1]s`", node), nil
	}
	return r.use(ctx, csr, id)
}

// lives reports whether a Node has ever been reported by its node. It asks the server,
// because a cache may be behind.
func (r *reconciler) lives(ctx context.Context, name string) (bool, error) {
	n, err := r.nodes.Get(ctx, "", name)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("node %s: %w", name, err)
	}
	if n.Status.NodeInfo.KubeletVersion != "" {
		return true, nil
	}
	if _, err = r.leases.Get(ctx, corev1.NamespaceNodeLease, name); apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lease of node %s: %w", name, err)
	}
	return true, nil
}

const (
	// singleUse, in a token's Secret, makes the token valid for one certificate.
	singleUse = "single-use"
	// usedBy is the annotation on a used token's Secret with the request's uid.
	usedBy = "keelson.dev/used-by"
	// readOn is how long a used token may still be used to read its certificate.
	readOn = 10 * time.Minute
)

// use marks a token as used before the request is approved. If a later step fails, the
// same request may still be approved.
func (r *reconciler) use(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, id string) (reason, message string, err error) {
	name := "bootstrap-token-" + id
	secret, err := r.secrets.Get(ctx, metav1.NamespaceSystem, name)
	if apierrors.IsNotFound(err) || err == nil && secret.DeletionTimestamp != nil {
		return "TokenRevoked", fmt.Sprintf("bootstrap token %s has been deleted since: make another one with `keel node token`", id), nil
	}
	if err != nil {
		return "", "", fmt.Errorf("bootstrap token %s: %w", id, err)
	}
	if string(secret.Data[singleUse]) != "true" || secret.Annotations[usedBy] == string(csr.UID) {
		return "", "", nil
	}
	if secret.Annotations[usedBy] != "" {
		return "TokenUsed", fmt.Sprintf("bootstrap token %s has been used: make another one with `keel node token`", id), nil
	}
	next := secret.DeepCopy()
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	next.Annotations[usedBy] = string(csr.UID)
	until := r.now().Add(readOn)
	if was, err := time.Parse(time.RFC3339, string(secret.Data["expiration"])); err != nil || until.Before(was) {
		next.Data["expiration"] = []byte(until.UTC().Format(time.RFC3339))
	}
	if _, err := r.secrets.Update(ctx, next); err != nil { // a conflict is tried again
		return "", "", fmt.Errorf("bootstrap token %s: %w", id, err)
	}
	return "", "", nil
}

// review reports whether the requester may create the subresource, by a subject access
// review.
func (r *reconciler) review(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, subresource string) (bool, error) {
	extra := make(map[string]authorizationv1.ExtraValue, len(csr.Spec.Extra))
	for k, v := range csr.Spec.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	got, err := client.For[*authorizationv1.SubjectAccessReview](r.Client).Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: csr.Spec.Username, UID: csr.Spec.UID, Groups: csr.Spec.Groups, Extra: extra,
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Group: certificatesv1.GroupName, Version: "v1", Resource: "certificatesigningrequests", Verb: "create", Subresource: subresource,
			},
		},
	})
	if err != nil {
		return false, fmt.Errorf("review the requester of %s: %w", csr.Name, err)
	}
	return got.Status.Allowed, nil
}

// settle writes an approval or a denial, unless there is an error.
func (r *reconciler) settle(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, decision certificatesv1.RequestConditionType, reason, message string, err error) error {
	if err != nil {
		return err
	}
	next := csr.DeepCopy()
	next.Status.Conditions = append(next.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: decision, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastUpdateTime: metav1.NewTime(r.now()),
	})
	return r.write(ctx, next, "approval")
}

// fail marks an approved request that cannot be signed. A request that is not approved
// waits for a person.
func (r *reconciler) fail(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, approved bool, reason string, cause error) error {
	if !approved {
		return nil
	}
	next := csr.DeepCopy()
	next.Status.Conditions = append(next.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: reason, Message: cause.Error(),
		LastUpdateTime: metav1.NewTime(r.now()),
	})
	return r.write(ctx, next, "status")
}

func (r *reconciler) sign(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest, now time.Time) error {
	cert, err := r.authority.Sign(csr, req, now)
	if err != nil {
		return fmt.Errorf("sign %s: %w", csr.Name, err)
	}
	next := csr.DeepCopy()
	next.Status.Certificate = cert
	return r.write(ctx, next, "status")
}

func (r *reconciler) write(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, door string) error {
	_, err := r.requests.Update(ctx, csr, client.Subresource(door))
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("%s of request %s: %w", door, csr.Name, err)
	}
	return nil
}
