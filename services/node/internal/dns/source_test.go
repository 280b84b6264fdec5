package dns

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// table is a Source that does not change.
type table struct {
	services []*corev1.Service
	slices   []*discoveryv1.EndpointSlice
	synced   chan struct{}
}

func (t *table) Service(namespace, name string) (*corev1.Service, bool) {
	for _, s := range t.services {
		if s.Namespace == namespace && s.Name == name {
			return s, true
		}
	}
	return nil, false
}

func (t *table) ServiceSlices(namespace, name string) (out []*discoveryv1.EndpointSlice) {
	for _, s := range t.slices {
		if s.Namespace == namespace && s.Labels[discoveryv1.LabelServiceName] == name {
			out = append(out, s)
		}
	}
	return out
}

func (t *table) ServicesAt(addr netip.Addr) (out []*corev1.Service) {
	for _, s := range t.services {
		if s.Spec.ClusterIP == addr.String() {
			out = append(out, s)
		}
	}
	return out
}

func (t *table) SlicesAt(addr netip.Addr) (out []*discoveryv1.EndpointSlice) {
	for _, s := range t.slices {
		if slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return slices.Contains(e.Addresses, addr.String()) }) {
			out = append(out, s)
		}
	}
	return out
}

func (t *table) HasNamespace(ns string) bool {
	return slices.ContainsFunc(t.services, func(s *corev1.Service) bool { return s.Namespace == ns })
}

func (t *table) Synced() <-chan struct{} { return t.synced }

func svc(namespace, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, Ports: ports},
	}
}

func external(name, target string) *corev1.Service {
	s := svc("apps", name, "")
	s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, target
	return s
}

func endpoint(addr, hostname string, ready bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
	if hostname != "" {
		e.Hostname = &hostname
	}
	return e
}

func ptr[T any](v T) *T { return &v }

// cluster returns the source of these tests.
func cluster() *table {
	t := &table{
		services: []*corev1.Service{
			svc("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443}),
			svc("apps", "web", "10.96.0.100",
				corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80},
				corev1.ServicePort{Name: "metrics", Protocol: corev1.ProtocolTCP, Port: 9090}),
			svc("apps", "db", corev1.ClusterIPNone, corev1.ServicePort{Name: "pg", Protocol: corev1.ProtocolTCP, Port: 5432}),
			svc("apps", "empty", corev1.ClusterIPNone),
			svc("apps", "single", "10.96.0.101", corev1.ServicePort{Protocol: corev1.ProtocolUDP, Port: 53}),
			external("outside", "example.org"),
			external("inside", "web.apps.svc.cluster.local"),
			external("loop", "loop.apps.svc.cluster.local"),
			external("broken", "absent.apps.svc.cluster.local"),
		},
		slices: []*discoveryv1.EndpointSlice{{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "apps", Name: "db-1", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: ptr("pg"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr[int32](5432)}},
			Endpoints: []discoveryv1.Endpoint{
				endpoint("10.244.1.5", "db-0", true), endpoint("10.244.2.6", "", true), endpoint("10.244.2.7", "db-2", false),
			},
		}, {
			ObjectMeta:  metav1.ObjectMeta{Namespace: "apps", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{endpoint("10.244.1.9", "", true)},
		}},
		synced: make(chan struct{}),
	}
	close(t.synced)
	return t
}

// outside stands in for upstream servers.
type outside struct {
	asked   []question
	answers map[string][]mdns.RR
	err     error
}

func (o *outside) ask(_ context.Context, q question) (*mdns.Msg, error) {
	o.asked = append(o.asked, q)
	if o.err != nil {
		return nil, o.err
	}
	m := new(mdns.Msg)
	if rrs, ok := o.answers[q.name]; ok {
		for _, rr := range rrs {
			if rr.Header().Rrtype == q.qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
	} else {
		m.Rcode = mdns.RcodeNameError
	}
	return m, nil
}

func (o *outside) stop()  {}
func (o *outside) close() {}

func rr(t testing.TB, text string) mdns.RR {
	t.Helper()
	r, err := mdns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func testConfig(s Source) Config {
	return Config{
		Source: s, ListenIP: netip.MustParseAddr("10.96.0.10"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
	}
}

func testHandler(t testing.TB) (*handler, *outside) {
	t.Helper()
	o := &outside{answers: map[string][]mdns.RR{"example.org.": {rr(t, "example.org. 60 IN A 192.0.2.8")}}}
	src := cluster()
	return &handler{zone: newZone(testConfig(src)), upstream: o, synced: src.synced, waiting: newShare(1)}, o
}
