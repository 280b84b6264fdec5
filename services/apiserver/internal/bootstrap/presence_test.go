package bootstrap

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// seen returns the addresses in the EndpointSlice and in the Endpoints, and the version of the
// slice.
func seen(t *testing.T, c *cluster) (slice, old, version string) {
	t.Helper()
	s, version := get[*discoveryv1.EndpointSlice](t, c, sliceGVR, "default", "kubernetes")
	var list []string
	for _, e := range s.Endpoints {
		list = append(list, e.Addresses...)
	}
	e, _ := get[*corev1.Endpoints](t, c, endpointsGVR, "default", "kubernetes")
	var also []string
	for _, sub := range e.Subsets {
		for _, a := range sub.Addresses {
			also = append(also, a.IP)
		}
	}
	return strings.Join(list, " "), strings.Join(also, " "), version
}

func TestPresence(t *testing.T) {
	c := newCluster(t)
	if err := Run(c.ctx, Config{API: c}); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	member := func(name, address string) *Presence {
		return &Presence{API: c, Name: name, Address: netip.MustParseAddrPort(address), ServiceIP: netip.MustParseAddr("10.96.0.1"), Now: func() time.Time { return now }}
	}
	announce := func(p *Presence) {
		t.Helper()
		if err := p.Announce(c.ctx); err != nil {
			t.Fatal(err)
		}
	}
	want := func(addresses string) {
		t.Helper()
		if slice, old, _ := seen(t, c); slice != addresses || old != addresses {
			t.Fatalf("slice %q, endpoints %q, want %q", slice, old, addresses)
		}
	}
	a, b := member("a", "10.0.0.1:6443"), member("b", "10.0.0.2:6443")
	announce(a)
	want("10.0.0.1")
	s, _ := get[*corev1.Service](t, c, serviceGVR, "default", "kubernetes")
	if s.Spec.ClusterIP != "10.96.0.1" || s.Spec.Ports[0].Port != 443 || s.Spec.Ports[0].TargetPort.IntValue() != 6443 || s.Spec.Ports[0].Name != "https" {
		t.Fatalf("%+v", s.Spec)
	}
	if grpc := s.Spec.Ports[1]; grpc.Name != "grpc" || grpc.Port != 6444 || grpc.TargetPort != s.Spec.Ports[0].TargetPort {
		t.Fatalf("the gRPC port is %+v", grpc)
	}
	slice, _ := get[*discoveryv1.EndpointSlice](t, c, sliceGVR, "default", "kubernetes")
	for i, name := range []string{"https", "grpc"} {
		if p := slice.Ports[i]; *p.Name != name || *p.Port != 6443 {
			t.Fatalf("port %d of the endpoints is %s, %d", i, *p.Name, *p.Port)
		}
	}
	_, _, before := seen(t, c)
	announce(a)
	if _, _, after := seen(t, c); after != before {
		t.Error("endpoints were written without a change")
	}
	announce(b)
	want("10.0.0.1 10.0.0.2")

	// b stops renewing; a notices when b's Lease has expired, and not before.
	now = now.Add(presentFor)
	announce(a)
	want("10.0.0.1 10.0.0.2")
	now = now.Add(time.Second)
	announce(a)
	want("10.0.0.1")

	// b returns at another address, and then leaves.
	b = member("b", "10.0.0.3:6443")
	announce(b)
	want("10.0.0.1 10.0.0.3")
	if err := b.Leave(c.ctx); err != nil {
		t.Fatal(err)
	}
	want("10.0.0.1")
	if err := a.Leave(c.ctx); err != nil {
		t.Fatal(err)
	}
	want("10.0.0.1") // the last address is kept
}

func TestLive(t *testing.T) {
	now := time.Unix(1000, 0)
	lease := func(address string, renewed time.Duration, change ...func(*coordinationv1.Lease)) *coordinationv1.Lease {
		p := &Presence{Now: func() time.Time { return now.Add(renewed) }}
		l := p.lease()
		l.Annotations[addressAnnotation] = address
		for _, f := range change {
			f(l)
		}
		return l
	}
	got := live([]*coordinationv1.Lease{
		lease("10.0.0.2:6443", 0),
		lease("10.0.0.1:6443", -presentFor),
		lease("10.0.0.1:6443", 0), // two processes with the same address
		lease("10.0.0.3:6443", -presentFor-time.Second),
		lease("127.0.0.1:6443", 0),
		lease("0.0.0.0:6443", 0),
		lease("nonsense", 0),
		lease("10.0.0.4:6443", 0, func(l *coordinationv1.Lease) { l.Spec.RenewTime = nil }),
		lease("10.0.0.5:6443", 0, func(l *coordinationv1.Lease) { l.DeletionTimestamp = &metav1.Time{Time: now} }),
	}, now)
	if want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6443"), netip.MustParseAddrPort("10.0.0.2:6443")}; !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
}

func TestPresenceRunsUntilItsContextEnds(t *testing.T) {
	c := newCluster(t)
	if err := Run(c.ctx, Config{API: c}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	p := &Presence{API: c, Name: "a", Address: netip.MustParseAddrPort("[fd00::1]:6443"), ServiceIP: netip.MustParseAddr("fd01::1")}
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	deadline := time.Now().Add(60 * time.Second)
	for {
		if present, err := p.present(c.ctx); err != nil || time.Now().After(deadline) {
			t.Fatal("not announced", err)
		} else if slices.Equal(present, []netip.AddrPort{p.Address}) {
			break
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if present, err := p.present(c.ctx); err != nil || len(present) != 0 {
		t.Fatal("the lease still exists", present, err)
	}
}
