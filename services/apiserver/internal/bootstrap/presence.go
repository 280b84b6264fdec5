package bootstrap

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

const (
	identityLabel     = "apiserver.kubernetes.io/identity" // KEP-1965
	identityValue     = "kube-apiserver"
	leaseNamePrefix   = "apiserver-"
	addressAnnotation = "keelson.dev/apiserver-address"

	// renewEvery and presentFor allow three failed renewals before the other apiservers remove
	// this one's address from the Service.
	renewEvery = 5 * time.Second
	presentFor = 20 * time.Second
)

var (
	leaseGVR     = coordinationv1.SchemeGroupVersion.WithResource("leases")
	serviceGVR   = corev1.SchemeGroupVersion.WithResource("services")
	endpointsGVR = corev1.SchemeGroupVersion.WithResource("endpoints")
	sliceGVR     = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
)

// Presence publishes an apiserver: with a Lease of its own and, together with all others whose
// Lease is current, as an endpoint of the Service default/kubernetes. All apiservers write the
// same objects, so no leader is needed.
type Presence struct {
	API pipeline.API
	// Name is unique among the apiservers.
	Name string
	// Address is where pods reach this apiserver's HTTPS port.
	Address netip.AddrPort
	// ServiceIP is the Service's cluster IP, the first address of the range.
	ServiceIP netip.Addr
	// DNSIP is the address on which nodes answer DNS. If it is not valid, no Service is created
	// for it.
	DNSIP netip.Addr
	Now   func() time.Time
}

// Run announces the apiserver periodically until ctx ends, and then withdraws it.
func (p *Presence) Run(ctx context.Context) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	logged := "" // a repeated error is logged once
	for {
		err := p.Announce(ctx)
		switch {
		case err == nil:
			logged = ""
		case ctx.Err() == nil && err.Error() != logged:
			logged = err.Error()
			slog.WarnContext(ctx, "cannot update service default/kubernetes", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := p.Leave(last); err != nil {
				slog.WarnContext(last, "cannot withdraw this apiserver from service default/kubernetes", "error", err)
			}
			return nil
		}
	}
}

// Announce renews the Lease and updates the Service and its endpoints once.
func (p *Presence) Announce(ctx context.Context) error {
	ctx = request.WithUser(ctx, User)
	if err := apply(ctx, p.API, leaseGVR, p.lease(), nextLease); err != nil {
		return err
	}
	present, err := p.present(ctx)
	if err != nil {
		return err
	}
	return p.publish(ctx, present)
}

// Leave deletes the Lease and removes the address from the Service, unless it is the last one: a
// Service with the last known address is better than one without any.
func (p *Presence) Leave(ctx context.Context) error {
	ctx = request.WithUser(ctx, User)
	own := pipeline.Target{Resource: leaseGVR, Namespace: metav1.NamespaceSystem, Name: leaseNamePrefix + p.Name}
	if _, err := p.API.Delete(ctx, own, pipeline.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	others, err := p.present(ctx)
	if err != nil || len(others) == 0 {
		return err
	}
	return p.publish(ctx, others)
}

func (p *Presence) now() time.Time {
	if p.Now != nil {
		return p.Now()
	}
	return time.Now()
}

func (p *Presence) lease() *coordinationv1.Lease {
	name, seconds, now := p.Name, int32(presentFor/time.Second), metav1.NewMicroTime(p.now())
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: leaseNamePrefix + p.Name,
			Labels:      map[string]string{identityLabel: identityValue},
			Annotations: map[string]string{addressAnnotation: p.Address.String()},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}
}

func nextLease(want, have resource.Object) resource.Object {
	next, fresh := have.DeepCopyObject().(*coordinationv1.Lease), want.(*coordinationv1.Lease)
	next.Labels = merged(fresh.Labels, next.Labels, true)
	next.Annotations = merged(fresh.Annotations, next.Annotations, true)
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = fresh.Spec.HolderIdentity, fresh.Spec.LeaseDurationSeconds, fresh.Spec.RenewTime
	return next
}

// present returns the addresses of the apiservers whose Lease is current.
func (p *Presence) present(ctx context.Context) ([]netip.AddrPort, error) {
	list, err := p.API.List(ctx, pipeline.Target{Resource: leaseGVR, Namespace: metav1.NamespaceSystem},
		pipeline.ListOptions{LabelSelector: identityLabel + "=" + identityValue})
	if err != nil {
		return nil, fmt.Errorf("list leases of apiservers: %w", err)
	}
	leases := make([]*coordinationv1.Lease, 0, len(list.Items))
	for _, item := range list.Items {
		leases = append(leases, item.Object().(*coordinationv1.Lease))
	}
	return live(leases, p.now()), nil
}

// live returns the addresses of current leases, sorted and without duplicates.
func live(leases []*coordinationv1.Lease, now time.Time) (addresses []netip.AddrPort) {
	for _, l := range leases {
		if l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil || l.DeletionTimestamp != nil ||
			now.After(l.Spec.RenewTime.Add(time.Duration(*l.Spec.LeaseDurationSeconds)*time.Second)) {
			continue
		}
		// A pod that dials a loopback address reaches no apiserver.
		if a, err := netip.ParseAddrPort(l.Annotations[addressAnnotation]); err == nil && !a.Addr().IsLoopback() && !a.Addr().IsUnspecified() {
			addresses = append(addresses, a)
		}
	}
	slices.SortFunc(addresses, netip.AddrPort.Compare)
	return slices.Compact(addresses)
}

// publish writes the Service and its endpoints where they are out of date.
func (p *Presence) publish(ctx context.Context, present []netip.AddrPort) error {
	if err := apply(ctx, p.API, serviceGVR, service(p.ServiceIP, present), nextService); err != nil {
		return err
	}
	if err := apply(ctx, p.API, sliceGVR, endpointSlice(present), nextSlice); err != nil {
		return err
	}
	if err := apply(ctx, p.API, endpointsGVR, endpoints(present), nextEndpoints); err != nil || !p.DNSIP.IsValid() {
		return err
	}
	return apply(ctx, p.API, serviceGVR, dnsService(p.DNSIP), asItIs)
}

// apply creates an object, or updates it to the result of next. It writes nothing if the object
// already equals that result. If another apiserver writes at the same time, that write wins.
func apply(ctx context.Context, api pipeline.API, gvr schema.GroupVersionResource, want resource.Object, next func(want, have resource.Object) resource.Object) error {
	kind := api.Table().ByResource(gvr)
	if kind == nil {
		return fmt.Errorf("%s are not served", gvr.Resource)
	}
	out, err := api.Get(ctx, pipeline.Target{Resource: gvr, Namespace: want.GetNamespace(), Name: want.GetName()}, pipeline.GetOptions{})
	verb := "update"
	switch {
	case apierrors.IsNotFound(err):
		verb = "create"
	case err != nil:
		return fmt.Errorf("get %s %s: %w", gvr.Resource, want.GetName(), err)
	default:
		have := out.Item.Object()
		if want = next(want, have); equality.Semantic.DeepEqual(want, have) {
			return nil
		}
		want.SetResourceVersion(versionOf(out.Item))
	}
	w, err := write(verb, kind, want)
	if err != nil {
		return err
	}
	err = api.Commit(ctx, []pipeline.Write{w})[0].Err
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return nil // another writer was faster; the next round tries again
	case err != nil:
		return fmt.Errorf("%s %s %s: %w", verb, gvr.Resource, want.GetName(), err)
	}
	return nil
}
