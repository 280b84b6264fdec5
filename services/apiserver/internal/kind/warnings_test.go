package kind_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

// Addresses in an unusual form earn a warning, but not those of the controllers.
func TestAddressWarnings(t *testing.T) {
	table := resource.NewTable(kind.All()...)
	const odd = "::ffff:10.0.0.1"
	slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv6, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{odd}}}}
	endpoints := &corev1.Endpoints{Subsets: []corev1.EndpointSubset{{
		Addresses: []corev1.EndpointAddress{{IP: odd}}, NotReadyAddresses: []corev1.EndpointAddress{{IP: "10.0.0.1"}},
	}}}
	for _, c := range []struct {
		obj          resource.Object
		gvk          schema.GroupVersionKind
		label, value string
		path         string
	}{
		{slice, discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), discoveryv1.LabelManagedBy, "endpointslice-controller.k8s.io", "endpoints[0].addresses[0]"},
		{endpoints, corev1.SchemeGroupVersion.WithKind("Endpoints"), "endpoints.kubernetes.io/managed-by", "endpoint-controller", "subsets[0].addresses[0].ip"},
	} {
		k := table.ByKind(c.gvk)
		if got := k.Rules.Warnings(c.obj, c.obj); len(got) != 1 || !strings.HasPrefix(got[0], c.path+": ") {
			t.Errorf("%s: %q", k.Resource, got)
		}
		c.obj.SetLabels(map[string]string{c.label: c.value})
		if got := k.Rules.Warnings(c.obj, c.obj); len(got) != 0 {
			t.Errorf("%s of the controller: %q", k.Resource, got)
		}
	}
}

func TestMountableSecretsWarning(t *testing.T) {
	k := resource.NewTable(kind.All()...).ByKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	plain, set := &corev1.ServiceAccount{}, &corev1.ServiceAccount{}
	set.SetAnnotations(map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"})
	for i, c := range []struct {
		obj, old resource.Object
		want     int
	}{{plain, nil, 0}, {set, nil, 1}, {set, plain, 1}, {set, set, 0}, {plain, set, 0}} {
		if got := k.Rules.Warnings(c.obj, c.old); len(got) != c.want {
			t.Errorf("%d: %q", i, got)
		}
	}
}
