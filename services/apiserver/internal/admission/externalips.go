package admission

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/resource"
)

// ExternalIPs keeps Services from taking over addresses that belong to something else
// (CVE-2020-8554), because every node forwards traffic for an external IP to the Service's pods.
// It refuses the addresses of nodes, apiservers, pods and Services; with Deny it refuses every
// external IP, as Kubernetes' DenyServiceExternalIPs does. A Service may keep the addresses that
// it already has.
type ExternalIPs struct {
	State State
	// Services is the range of cluster IPs.
	Services netip.Prefix
	Deny     bool
}

// Validate implements Validator.
func (p *ExternalIPs) Validate(_ context.Context, a *Attributes) error {
	svc, ok := a.Object.(*corev1.Service)
	if !ok || a.Subresource != "" || len(svc.Spec.ExternalIPs) == 0 {
		return nil
	}
	var had []string
	if old, ok := a.Old.(*corev1.Service); ok {
		had = old.Spec.ExternalIPs
	}
	var errs field.ErrorList
	for i, text := range svc.Spec.ExternalIPs {
		if slices.Contains(had, text) {
			continue
		}
		if p.Deny {
			return errors.New("Use of external IPs is denied by admission control")
		}
		ip, err := netip.ParseAddr(text)
		if err != nil {
			continue // validation refuses it
		}
		if owner := p.owner(ip.Unmap()); owner != "" {
			errs = append(errs, field.Invalid(field.NewPath("spec", "externalIPs").Index(i), text, "may not be an address of "+owner))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(a.Kind.GVK.GroupKind(), a.Name, errs)
}

// owner names what already uses an address. It is empty if no known object does.
func (p *ExternalIPs) owner(ip netip.Addr) (owner string) {
	if p.Services.Contains(ip) {
		return fmt.Sprintf("the Services' range %s", p.Services)
	}
	if obj, ok := p.State.Get("", "endpoints", metav1.NamespaceDefault, "kubernetes"); ok {
		if e, ok := obj.(*corev1.Endpoints); ok { //nolint:staticcheck // apiservers publish their addresses in it
			for _, s := range e.Subsets {
				for _, address := range s.Addresses {
					if is(address.IP, ip) {
						return "an apiserver"
					}
				}
			}
		}
	}
	p.State.Each("", "nodes", "", func(obj resource.Object) bool {
		n, ok := obj.(*corev1.Node)
		if !ok {
			return true
		}
		for _, address := range n.Status.Addresses {
			if is(address.Address, ip) {
				owner = fmt.Sprintf("node %q", n.Name)
			}
		}
		for _, text := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
			if r, err := netip.ParsePrefix(text); err == nil && r.Contains(ip) {
				owner = fmt.Sprintf("the pods' range %s", r)
			}
		}
		return owner == ""
	})
	return owner
}

func is(text string, ip netip.Addr) bool {
	other, err := netip.ParseAddr(text)
	return err == nil && other.Unmap() == ip
}
