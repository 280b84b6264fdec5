package kind_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

// TestAddressWarnings checks the warnings about addresses in an unusual form, which objects of
// the controllers do not get.
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
			t.Errorf("%s managed by a controller: %q", k.Resource, got)
		}
	}
}

// TestVolumeWarnings checks the warnings about deprecated labels of nodes and other deprecated
// settings of volumes and classes. The texts are Kubernetes'.
func TestVolumeWarnings(t *testing.T) {
	table := resource.NewTable(kind.All()...)
	const zone = "failure-domain.beta.kubernetes.io/zone"
	const why = `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`
	expressions := []corev1.NodeSelectorRequirement{{Key: "topology.kubernetes.io/zone"}, {Key: zone}}
	volume := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRecycle,
		NodeAffinity:                  &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: expressions}}}},
	}}
	volume.Annotations = map[string]string{"volume.beta.kubernetes.io/mount-options": "ro"}
	class := &storagev1.StorageClass{AllowedTopologies: []corev1.TopologySelectorTerm{{
		MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: zone, Values: []string{"a"}}},
	}}}
	for _, c := range []struct {
		obj  resource.Object
		gvk  schema.GroupVersionKind
		want []string
	}{
		{class, storagev1.SchemeGroupVersion.WithKind("StorageClass"), []string{"allowedTopologies[0].matchLabelExpressions[0].key: " + why}},
		{volume, corev1.SchemeGroupVersion.WithKind("PersistentVolume"), []string{
			`metadata.annotations[volume.beta.kubernetes.io/mount-options]: deprecated since v1.31; use "mountOptions" attribute instead`,
			"spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
			"spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[1].key: " + zone + " is " + why,
		}},
	} {
		rules := table.ByKind(c.gvk).Rules
		if rules.Warnings == nil {
			t.Errorf("%s has no warnings", c.gvk.Kind)
			continue
		}
		if got := rules.Warnings(c.obj, nil); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.gvk.Kind, got, c.want)
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
