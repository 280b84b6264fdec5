// Package csr approves the certificate requests of nodes, signs what is approved,
// and removes what is old.
//
// Approved without a person are two kinds alone: a bootstrap token's request for
// a node's client certificate, and a node's request to renew its own.
//
// It must never sign what is not approved, nor for a signer that is not
// Kubernetes' own.
package csr

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// How long requests are kept, as in Kubernetes.
const (
	keepSettled = time.Hour
	keepPending = 24 * time.Hour
)

type reconciler struct {
	*cluster.Cluster

	requests  client.Resource[*certificatesv1.CertificateSigningRequest]
	authority *Authority
	now       func() time.Time
}

// New is the controller. Without an authority it approves and removes, but does
// not sign.
func New(s *cluster.Cluster, a *Authority) controller.Controller { return build(s, a, time.Now) }

func build(s *cluster.Cluster, a *Authority, now func() time.Time) controller.Controller {
	r := &reconciler{Cluster: s, requests: client.For[*certificatesv1.CertificateSigningRequest](s.Client), authority: a, now: now}
	return controller.Controller{
		Name: "certificate-signing", Workers: 2, Reconcile: r.reconcile,
		Sources: []controller.Source{controller.Objects(s.SigningRequests)},
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
		if !OfNode(csr, req) {
			return wait, nil
		}
		return wait, r.approve(ctx, csr)
	}
	if !strings.HasPrefix(csr.Spec.SignerName, "kubernetes.io/") || r.authority == nil {
		return wait, nil
	}
	if err := Permits(csr, req); err != nil {
		return wait, r.fail(ctx, csr, approved, "SignerValidationFailure", err)
	}
	return wait, r.sign(ctx, csr, req, now)
}

// Ends is when a request has been kept for long enough.
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

// OfNode tells the requests that are approved without a person: a node's client
// certificate, asked for by a bootstrap token or by that node.
func OfNode(csr *certificatesv1.CertificateSigningRequest, req *x509.CertificateRequest) bool {
	if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName || Permits(csr, req) != nil {
		return false
	}
	if csr.Spec.Username == req.Subject.CommonName && slices.Contains(csr.Spec.Groups, "system:nodes") {
		return true
	}
	return strings.HasPrefix(csr.Spec.Username, "system:bootstrap:") && slices.Contains(csr.Spec.Groups, "system:bootstrappers")
}

func (r *reconciler) approve(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	next := csr.DeepCopy()
	next.Status.Conditions = append(next.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved",
		Message: "Auto approving kubelet client certificate.", LastUpdateTime: metav1.NewTime(r.now()),
	})
	return r.write(ctx, next, "approval")
}

// fail marks an approved request that cannot be signed; one that is not approved
// waits for a person to look at it.
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
