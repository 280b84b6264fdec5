package agent

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestNamespaceAt checks that an address belongs to the pod that has it now, in whichever
// order the events of its previous and its next pod arrive.
func TestNamespaceAt(t *testing.T) {
	a := &Agent{}
	at := func(uid types.UID, namespace, ip string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid, Namespace: namespace}}
		if ip != "" {
			p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
		}
		return p
	}
	expect := func(what, ip, want string) {
		t.Helper()
		if got := a.NamespaceAt(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s: %s is in namespace %q, want %q", what, ip, got, want)
		}
	}
	expect("at first", "10.0.0.1", "")
	a.addresses.update(at("1", "a", ""), nil, false)
	a.addresses.update(at("1", "a", "10.0.0.1"), at("1", "a", ""), false)
	expect("with an address", "10.0.0.1", "a")
	a.addresses.update(at("2", "b", "10.0.0.1"), nil, false)
	a.addresses.update(at("1", "a", "10.0.0.1"), nil, true)
	expect("after another has it", "10.0.0.1", "b")
	a.addresses.update(at("2", "b", "10.0.0.2"), at("2", "b", "10.0.0.1"), false)
	expect("after it moved", "10.0.0.1", "")
	expect("after it moved", "10.0.0.2", "b")
	host := at("3", "c", "10.0.0.9")
	host.Spec.HostNetwork = true
	a.addresses.update(host, nil, false)
	expect("of the node", "10.0.0.9", "")
	ended := at("2", "b", "10.0.0.2")
	ended.Status.Phase = corev1.PodSucceeded
	a.addresses.update(ended, at("2", "b", "10.0.0.2"), false)
	expect("after its end", "10.0.0.2", "")
}
