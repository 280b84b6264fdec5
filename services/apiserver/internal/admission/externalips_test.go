package admission

import (
	"context"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExternalIPs(t *testing.T) {
	state := state(
		&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:1::/64"}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeInternalIP, Address: "172.30.0.11"}}},
		},
		&corev1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"},
			Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "172.30.0.2"}}}},
		},
	)
	service := func(ips ...string) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "ns"}, Spec: corev1.ServiceSpec{ExternalIPs: ips}}
	}
	p := &ExternalIPs{State: state, Services: netip.MustParsePrefix("10.96.0.0/16")}
	deny := &ExternalIPs{State: state, Services: p.Services, Deny: true}
	for name, test := range map[string]struct {
		p        *ExternalIPs
		svc, old *corev1.Service
		text     string
	}{
		"none":                  {deny, service(), nil, ""},
		"an unused address":     {p, service("203.0.113.250"), nil, ""},
		"a node's":              {p, service("203.0.113.250", "172.30.0.11"), nil, `spec.externalIPs[1]: Invalid value: "172.30.0.11": may not be an address of node "n"`},
		"a node's, mapped":      {p, service("::ffff:172.30.0.11"), nil, `may not be an address of node "n"`},
		"an apiserver's":        {p, service("172.30.0.2"), nil, `may not be an address of an apiserver`},
		"a pod's":               {p, service("10.244.1.9"), nil, `may not be an address of the pods' range 10.244.1.0/24`},
		"a pod's, IPv6":         {p, service("fd00:1::9"), nil, `may not be an address of the pods' range fd00:1::/64`},
		"a Service's":           {p, service("10.96.0.1"), nil, `may not be an address of the Services' range 10.96.0.0/16`},
		"added later":           {p, service("203.0.113.250", "10.96.0.1"), service("203.0.113.250"), `spec.externalIPs[1]`},
		"kept":                  {p, service("172.30.0.11"), service("172.30.0.11"), ""},
		"denied":                {deny, service("203.0.113.250"), nil, "Use of external IPs is denied by admission control"},
		"denied, added later":   {deny, service("203.0.113.250", "203.0.113.251"), service("203.0.113.250"), "Use of external IPs is denied"},
		"denied, kept":          {deny, service("203.0.113.250"), service("203.0.113.250", "203.0.113.251"), ""},
		"not an address at all": {p, service("x"), nil, ""},
	} {
		a := attributes(Create, test.svc, nil)
		if test.old != nil {
			a = attributes(Update, test.svc, test.old)
		}
		refused(t, name, test.p.Validate(context.Background(), a), test.text)
	}
}
