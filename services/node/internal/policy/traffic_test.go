package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/node/internal/nettest"
)

var denyAll = networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}

// TestTraffic checks a default deny and what is allowed beside it: on one node, between nodes, from
// the pod's own node, to the pod itself, and after the policies are gone.
func TestTraffic(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.pod(0, "shop", "a", map[string]string{"app": "a"})
	b := r.pod(0, "shop", "b", map[string]string{"app": "b"})
	c := r.pod(1, "shop", "c", map[string]string{"app": "c"})
	for _, from := range []*runningPod{b, c} {
		r.reaches(from.NS, "tcp", a.at(80), true)
	}
	if out := r.rules(0); !strings.Contains(out, "No such file") {
		t.Errorf("there is a table without a policy:\n%s", out)
	}
	r.set(func(s *source) { s.policies = []*networkingv1.NetworkPolicy{netpol("shop", "deny", denyAll)} })
	for _, from := range []*runningPod{b, c} {
		r.reaches(from.NS, "tcp", a.at(80), false)
		r.reaches(from.NS, "udp", a.at(80), false)
	}
	r.reaches(r.nodes[0], "tcp", a.at(80), true)
	r.reaches(r.nodes[1], "tcp", a.at(80), false)
	r.reaches(a.NS, "tcp", a.at(80), true)
	r.set(func(s *source) {
		s.policies = append(s.policies, netpol("shop", "allow", networkingv1.NetworkPolicySpec{
			PodSelector: *byLabel("app", "a"), PolicyTypes: denyAll.PolicyTypes,
			Ingress: ingressFrom(networkingv1.NetworkPolicyPeer{PodSelector: byLabel("app", "c")}),
		}))
	})
	r.reaches(c.NS, "tcp", a.at(80), true)
	r.reaches(c.NS, "udp", a.at(81), true)
	r.reaches(b.NS, "tcp", a.at(80), false)
	r.reaches(c.NS, "tcp", b.at(80), false)
	r.set(func(s *source) { s.policies = nil })
	r.reaches(b.NS, "tcp", a.at(80), true)
}

// TestServices checks that rules see the pod behind a Service's address, and that a pod reaches itself
// through it.
func TestServices(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.pod(0, "shop", "a", map[string]string{"app": "a"})
	b := r.pod(0, "shop", "b", map[string]string{"app": "b"})
	c := r.pod(0, "shop", "c", map[string]string{"app": "c"})
	// What the proxy does for a Service whose only endpoint is a.
	r.nodes[0].Run("nft", fmt.Sprintf(`add table ip service
add chain ip service pre { type nat hook prerouting priority -100; }
add chain ip service post { type nat hook postrouting priority 100; }
add rule ip service pre ip daddr 10.96.0.1 tcp dport 8000 dnat to %[1]s:80
add rule ip service post ip saddr %[1]s ip daddr %[1]s masquerade`, a.addr))
	vip := netip.MustParseAddrPort("10.96.0.1:8000")
	port := intstr.FromInt32(80)
	r.set(func(s *source) {
		s.policies = []*networkingv1.NetworkPolicy{
			netpol("shop", "deny", networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"}}),
			netpol("shop", "out", networkingv1.NetworkPolicySpec{PodSelector: *byLabel("app", "b"), PolicyTypes: []networkingv1.PolicyType{"Egress"},
				Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: byLabel("app", "a")}}, Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}}}}),
			netpol("shop", "in", networkingv1.NetworkPolicySpec{PodSelector: *byLabel("app", "a"), PolicyTypes: []networkingv1.PolicyType{"Ingress"},
				Ingress: ingressFrom(networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}})}),
		}
	})
	r.reaches(b.NS, "tcp", vip, true)
	r.reaches(b.NS, "tcp", a.at(81), false)
	r.reaches(c.NS, "tcp", vip, false)
	r.set(func(s *source) { s.policies = s.policies[:1] })
	r.reaches(a.NS, "tcp", vip, true)
	r.reaches(b.NS, "tcp", vip, false)
}

// TestEstablishedConnectionsAreCut checks that a connection that a new policy forbids ends, whoever
// sends next, and that one that it allows goes on.
func TestEstablishedConnectionsAreCut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.pod(0, "shop", "a", map[string]string{"app": "a"})
	b := r.pod(1, "shop", "b", map[string]string{"app": "b"})
	c := r.pod(1, "shop", "c", map[string]string{"app": "c"})
	for _, network := range []string{"tcp", "udp"} {
		r.set(func(s *source) { s.policies = nil })
		bad, err := b.Dial(network, a.at(80))
		if err != nil {
			t.Fatal(err)
		}
		defer bad.Close()
		good, err := c.Dial(network, a.at(80))
		if err != nil {
			t.Fatal(err)
		}
		defer good.Close()
		if _, err := nettest.Ask(bad); err != nil {
			t.Fatal(err)
		}
		if _, err := nettest.Ask(good); err != nil {
			t.Fatal(err)
		}
		r.set(func(s *source) {
			s.policies = []*networkingv1.NetworkPolicy{netpol("shop", "allow", networkingv1.NetworkPolicySpec{
				PodSelector: *byLabel("app", "a"), PolicyTypes: denyAll.PolicyTypes,
				Ingress: ingressFrom(networkingv1.NetworkPolicyPeer{PodSelector: byLabel("app", "c")}),
			})}
		})
		if _, err := nettest.Ask(good); err != nil {
			t.Errorf("%s: an allowed connection was cut: %v", network, err)
		}
		if err := bad.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = bad.Write([]byte("?\n"))
		if n, err := bad.Read(make([]byte, 100)); err == nil {
			t.Errorf("%s: a forbidden connection still answers (%d bytes)\n%s", network, n, r.rules(0))
		}
	}
}

// TestAServerCannotTakeUpACutConnection checks a connection on which the server sends first after it
// was forbidden.
func TestAServerCannotTakeUpACutConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := r.pod(0, "shop", "a", nil), r.pod(1, "shop", "b", nil)
	var listener net.Listener
	a.Must(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp4", "0.0.0.0:90")
		return err
	})
	defer listener.Close()
	client, err := b.Dial("tcp", a.at(90))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	r.set(func(s *source) { s.policies = []*networkingv1.NetworkPolicy{netpol("shop", "deny", denyAll)} })
	if _, err := server.Write([]byte("secret")); err != nil {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server's end: %v, want a reset", err)
	}
	_ = client.SetReadDeadline(time.Now().Add(brief))
	if n, err := client.Read(make([]byte, 10)); err == nil {
		t.Errorf("the client received %d bytes", n)
	}
}

// TestAPodIsHeldBackUntilItsPoliciesAreInForce checks Admit while the API is away, and that a pod is
// protected when it returns.
func TestAPodIsHeldBackUntilItsPoliciesAreInForce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	b := r.pod(0, "shop", "b", nil)
	r.set(func(s *source) { s.policies = []*networkingv1.NetworkPolicy{netpol("shop", "deny", denyAll)} })
	a := r.bare(0, "shop", "a", nil)
	r.source.set(func() { r.source.caughtUp = errors.New("the API is away") })
	if err := r.enforcers[0].Admit(t.Context(), a.pod, a.addr.String()); err == nil || !strings.Contains(err.Error(), "the API is away") {
		t.Errorf("admitted without its policies: %v", err)
	}
	r.source.set(func() { r.source.caughtUp = nil })
	r.admit(a)
	r.reaches(b.NS, "tcp", a.at(80), false)

	// What cannot be read yet holds pods back as well.
	r.stop[0]()
	r.source.set(func() { r.source.unknown = true })
	r.start(0)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	d := r.bare(0, "shop", "d", nil)
	if err := r.enforcers[0].Admit(ctx, d.pod, d.addr.String()); err == nil {
		t.Error("admitted before the policies were read")
	}
	// The rules of the process before stay in force.
	r.reaches(b.NS, "tcp", a.at(80), false)
	r.source.set(func() { r.source.unknown = false })
	r.flush(0)
	r.reaches(b.NS, "tcp", a.at(80), false)
}

// TestRepair checks that the table comes back when another program removes it.
func TestRepair(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.pod(0, "shop", "a", nil)
	b := r.pod(0, "shop", "b", nil)
	r.set(func(s *source) { s.policies = []*networkingv1.NetworkPolicy{netpol("shop", "deny", denyAll)} })
	r.reaches(b.NS, "tcp", a.at(80), false)
	r.nodes[0].Run("nft", "flush", "ruleset")
	for deadline := time.Now().Add(time.Minute); strings.Contains(r.rules(0), "No such file"); {
		if time.Now().After(deadline) {
			t.Fatal("the table did not come back")
		}
		r.flush(0)
	}
	r.reaches(b.NS, "tcp", a.at(80), false)
}

// TestSpoofedSources checks that a pod gains nothing by another pod's address, whether that pod is
// on the same node or on another.
func TestSpoofedSources(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.pod(0, "shop", "a", map[string]string{"app": "a"})
	good := r.pod(0, "shop", "good", map[string]string{"app": "good"})
	remote := r.pod(1, "shop", "remote", map[string]string{"app": "good"})
	bad := r.pod(0, "shop", "bad", map[string]string{"app": "bad"})
	r.set(func(s *source) {
		s.policies = []*networkingv1.NetworkPolicy{netpol("shop", "allow", networkingv1.NetworkPolicySpec{
			PodSelector: *byLabel("app", "a"), PolicyTypes: denyAll.PolicyTypes,
			Ingress: ingressFrom(networkingv1.NetworkPolicyPeer{PodSelector: byLabel("app", "good")}),
		})}
	})
	server := a.Serve("udp", 90)
	r.reaches(good.NS, "udp", a.at(90), true)
	r.reaches(remote.NS, "udp", a.at(90), true)
	calls := server.Calls.Load()
	for _, claimed := range []netip.Addr{good.addr, remote.addr} {
		bad.Run("ip", "addr", "add", claimed.String()+"/32", "dev", "lo")
		conn, err := bad.DialFrom(nettest.Patience, "udp", netip.AddrPortFrom(claimed, 0), a.at(90))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			_, _ = conn.Write([]byte("?\n"))
		}
		conn.Close()
	}
	// An allowed datagram after them shows that they would have arrived.
	r.reaches(good.NS, "udp", a.at(90), true)
	if n := server.Calls.Load() - calls; n != 1 {
		t.Errorf("%d datagrams with a claimed address arrived\n%s", n-1, r.rules(0))
	}
}

// TestNewSandboxWithTheSameAddress checks that a pod keeps its network when its sandbox is replaced and
// gets the same address by another interface.
func TestNewSandboxWithTheSameAddress(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := r.pod(0, "shop", "a", nil), r.pod(0, "shop", "b", nil)
	r.set(func(s *source) { s.policies = []*networkingv1.NetworkPolicy{netpol("shop", "deny", denyAll)} })
	r.set(func(s *source) {
		s.policies = append(s.policies, netpol("shop", "allow", networkingv1.NetworkPolicySpec{Ingress: ingressFrom(networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}})}))
	})
	r.reaches(a.NS, "tcp", b.at(80), true)
	again := r.nodes[0].Pod("again", a.addr, netip.MustParseAddr("10.244.1.1"))
	r.enforcers[0].Forget(a.pod.UID)
	if err := r.enforcers[0].Admit(t.Context(), a.pod, a.addr.String()); err != nil {
		t.Fatal(err)
	}
	r.reaches(again, "tcp", b.at(80), true)
}

// TestUnknownPodsAreCutOff checks a pod that the runtime has and the API does not.
func TestUnknownPodsAreCutOff(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.pod(0, "shop", "a", nil)
	orphan := r.bare(0, "shop", "orphan", nil)
	r.reaches(a.NS, "tcp", orphan.at(80), true)
	r.stop[0]()
	r.start(0)
	e := r.enforcers[0]
	e.Forget(orphan.pod.UID)
	e.Known([]Local{UnknownLocal(orphan.pod.UID, orphan.addr)})
	r.flush(0)
	r.reaches(a.NS, "tcp", orphan.at(80), false)
	r.reaches(orphan.NS, "tcp", a.at(80), false)
}
