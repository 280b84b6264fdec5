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

	// renewEvery and presentFor: three renewals may fail before the others take an
	// apiserver's address out of the Service.
	renewEvery = 5 * time.Second
	presentFor = 20 * time.Second
)

var (
	leaseGVR     = coordinationv1.SchemeGroupVersion.WithResource("leases")
	serviceGVR   = corev1.SchemeGroupVersion.WithResource("services")
	endpointsGVR = corev1.SchemeGroupVersion.WithResource("endpoints")
	sliceGVR     = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
)

// Presence makes an apiserver known: by a Lease of its own, and, together with all
// others whose Lease is fresh, as an endpoint of the Service default/kubernetes.
// Every apiserver keeps the same objects up, so none has to lead.
type Presence struct {
	API pipeline.API
	// Name is unique among the apiservers.
	Name string
	// Address is where pods reach this apiserver by HTTPS.
	Address netip.AddrPort
	// ServiceIP is the Service's cluster IP, the first of the range.
	ServiceIP netip.Addr
	// DNSIP is the address that nodes answer DNS on; zero makes no Service of it.
	DNSIP netip.Addr
	Now   func() time.Time
}

// Run keeps it up until ctx ends, and then says goodbye.
func (p *Presence) Run(ctx context.Context) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	said := "" // a failure that lasts is logged once
	for {
		err := p.Announce(ctx)
		switch {
		case err == nil:
			said = ""
		case ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			slog.WarnContext(ctx, "service default/kubernetes is not kept up", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := p.Leave(last); err != nil {
				slog.WarnContext(last, "did not say goodbye to the other apiservers", "error", err)
			}
			return nil
		}
	}
}

// Announce renews the Lease and brings the Service and its endpoints up to date,
// once.
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

// Leave deletes the Lease and takes the address out of the Service, unless it is
// the last one: a Service that names where the apiserver was is better than none.
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

// present are the addresses of the apiservers whose Lease is fresh.
func (p *Presence) present(ctx context.Context) ([]netip.AddrPort, error) {
	list, err := p.API.List(ctx, pipeline.Target{Resource: leaseGVR, Namespace: metav1.NamespaceSystem},
		pipeline.ListOptions{LabelSelector: identityLabel + "=" + identityValue})
	if err != nil {
		return nil, fmt.Errorf("list leases of apiservers: %w", err)
	}
	leases := make([]*coordinationv1.Lease, 0, len(list.Items))
	for _, item := range list.Items {
		leases = append(leases, item.Object.(*coordinationv1.Lease))
	}
	return live(leases, p.now()), nil
}

// live are the addresses of fresh leases, in order, each once.
func live(leases []*coordinationv1.Lease, now time.Time) (addresses []netip.AddrPort) {
	for _, l := range leases {
		if l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil || l.DeletionTimestamp != nil ||
			now.After(l.Spec.RenewTime.Add(time.Duration(*l.Spec.LeaseDurationSeconds)*time.Second)) {
			continue
		}
		// A pod that dials its own loopback reaches no apiserver.
		if a, err := netip.ParseAddrPort(l.Annotations[addressAnnotation]); err == nil && !a.Addr().IsLoopback() && !a.Addr().IsUnspecified() {
			addresses = append(addresses, a)
		}
	}
	slices.SortFunc(addresses, netip.AddrPort.Compare)
	return slices.Compact(addresses)
}

// publish writes the Service and its endpoints where they are not as they should
// be.
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

// apply creates an object, or changes it to what next makes of it; nothing is
// written where that is what it is already. Another apiserver that does the same
// at the same time is let go first.
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
		have := out.Item.Object
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
		return nil // somebody was faster; the next round looks again
	case err != nil:
		return fmt.Errorf("%s %s %s: %w", verb, gvr.Resource, want.GetName(), err)
	}
	return nil
}
