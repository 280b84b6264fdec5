package policy

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// podAt returns a pod of the API with an address.
func podAt(namespace, name, ip string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Labels: labels},
		Spec:       corev1.PodSpec{NodeName: nodeOf(ip), Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip},
	}
}

// nodeOf returns the node whose range an address belongs to.
func nodeOf(ip string) string {
	if strings.HasPrefix(ip, "10.244.1.") {
		return "node-1"
	}
	return "node-2"
}

func localAt(p *corev1.Pod) Local { return NewLocal(p, netip.MustParseAddr(p.Status.PodIP)) }

// TestPlan checks what rules of one node allow. "mine" is its only pod; "peer" is on another node.
func TestPlan(t *testing.T) {
	t.Parallel()
	mine := podAt("shop", "mine", "10.244.1.2", map[string]string{"app": "mine"})
	peer := podAt("shop", "peer", "10.244.2.2", map[string]string{"app": "peer"})
	other := podAt("other", "other", "10.244.2.3", map[string]string{"app": "peer"})
	host := podAt("shop", "host", "10.89.0.12", map[string]string{"app": "peer"})
	host.Spec.HostNetwork = true
	ended := podAt("shop", "ended", "10.244.2.9", map[string]string{"app": "peer"})
	ended.Status.Phase = corev1.PodSucceeded
	namespaces := map[string]map[string]string{"shop": {"team": "a"}, "other": {"team": "b"}}
	const (
		none = "" // nothing isolates in that direction
		tcp  = corev1.ProtocolTCP
		udp  = corev1.ProtocolUDP
	)
	in := func(from ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{Ingress: ingressFrom(from...)}
	}
	block := func(cidr string, except ...string) networkingv1.NetworkPolicyPeer {
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
	}
	port := func(protocol corev1.Protocol, p any, end ...int32) networkingv1.NetworkPolicyPort {
		out := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		switch p := p.(type) {
		case int:
			n := intstr.FromInt(p)
			out.Port = &n
		case string:
			n := intstr.FromString(p)
			out.Port = &n
		}
		if len(end) > 0 {
			out.EndPort = &end[0]
		}
		return out
	}
	ports := func(list ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: list}}}
	}
	to := func(list []networkingv1.NetworkPolicyPort, peers ...networkingv1.NetworkPolicyPeer) networkingv1.NetworkPolicySpec {
		return networkingv1.NetworkPolicySpec{Egress: []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: list}}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}}
	}
	pods := networkingv1.NetworkPolicyPeer{PodSelector: byLabel("app", "peer")}
	flow := func(from, to string, protocol corev1.Protocol, port uint16) Flow {
		return Flow{netip.MustParseAddr(from), netip.MustParseAddr(to), protocol, port}
	}
	const me, it, that, outside, node = "10.244.1.2", "10.244.2.2", "10.244.2.3", "192.0.2.7", "10.89.0.12"
	for _, row := range []struct {
		what           string
		specs          []networkingv1.NetworkPolicySpec
		allowed, other []Flow // allowed and refused
	}{
		{"no policy", nil, []Flow{flow(it, me, tcp, 80), flow(me, it, tcp, 80), flow(outside, me, udp, 1)}, nil},
		{"default deny of ingress", []networkingv1.NetworkPolicySpec{{}},
			[]Flow{flow(me, it, tcp, 80), flow(me, me, tcp, 80)}, []Flow{flow(it, me, tcp, 80), flow(outside, me, none, 0)}},
		{"default deny of egress", []networkingv1.NetworkPolicySpec{{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}}},
			[]Flow{flow(it, me, tcp, 80)}, []Flow{flow(me, it, tcp, 80), flow(me, outside, udp, 53)}},
		{"egress rules imply egress", []networkingv1.NetworkPolicySpec{{Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{pods}}}}},
			[]Flow{flow(me, it, tcp, 80)}, []Flow{flow(me, that, tcp, 80), flow(it, me, tcp, 80)}},
		{"a rule without peers or ports", []networkingv1.NetworkPolicySpec{{Ingress: []networkingv1.NetworkPolicyIngressRule{{}}}},
			[]Flow{flow(it, me, tcp, 80), flow(outside, me, none, 0)}, nil},
		{"pods of the namespace", []networkingv1.NetworkPolicySpec{in(pods)},
			[]Flow{flow(it, me, tcp, 80), flow(it, me, none, 0)}, []Flow{flow(that, me, tcp, 80), flow(outside, me, tcp, 80), flow(node, me, tcp, 80), flow("10.244.2.9", me, tcp, 80)}},
		{"namespaces", []networkingv1.NetworkPolicySpec{in(networkingv1.NetworkPolicyPeer{NamespaceSelector: byLabel("team", "b")})},
			[]Flow{flow(that, me, tcp, 80)}, []Flow{flow(it, me, tcp, 80)}},
		{"pods of namespaces", []networkingv1.NetworkPolicySpec{in(networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: byLabel("app", "peer")})},
			[]Flow{flow(it, me, tcp, 80), flow(that, me, tcp, 80)}, []Flow{flow(outside, me, tcp, 80)}},
		{"a block with exceptions", []networkingv1.NetworkPolicySpec{in(block("192.0.2.0/24", "192.0.2.8/30"))},
			[]Flow{flow(outside, me, tcp, 80), flow("192.0.2.12", me, tcp, 80)}, []Flow{flow("192.0.2.8", me, tcp, 80), flow("192.0.2.11", me, tcp, 80), flow("192.0.3.0", me, tcp, 80)}},
		{"an exception of one block does not bind another", []networkingv1.NetworkPolicySpec{in(block("192.0.2.0/24", "192.0.2.8/30"), block("192.0.2.8/31"))},
			[]Flow{flow("192.0.2.9", me, tcp, 80)}, []Flow{flow("192.0.2.10", me, tcp, 80)}},
		{"a block of IPv6", []networkingv1.NetworkPolicySpec{in(block("2001:db8::/32"))}, nil, []Flow{flow(outside, me, tcp, 80)}},
		{"ports", []networkingv1.NetworkPolicySpec{ports(port(tcp, 80), port(tcp, 90, 95), port(tcp, 93, 99), port(udp, 53))},
			[]Flow{flow(it, me, tcp, 80), flow(it, me, tcp, 90), flow(it, me, tcp, 99), flow(it, me, udp, 53)},
			[]Flow{flow(it, me, tcp, 81), flow(it, me, tcp, 100), flow(it, me, tcp, 53), flow(it, me, none, 0)}},
		{"a protocol without a port", []networkingv1.NetworkPolicySpec{ports(port(udp, nil))}, []Flow{flow(it, me, udp, 7)}, []Flow{flow(it, me, tcp, 7)}},
		{"a named port", []networkingv1.NetworkPolicySpec{ports(port(tcp, "web"))},
			[]Flow{flow(it, me, tcp, 8080)}, []Flow{flow(it, me, tcp, 80), flow(it, me, udp, 8080)}},
		{"a named port of another protocol", []networkingv1.NetworkPolicySpec{ports(port(udp, "web"))}, nil, []Flow{flow(it, me, tcp, 8080), flow(it, me, udp, 8080)}},
		{"a named port of the peer", []networkingv1.NetworkPolicySpec{to([]networkingv1.NetworkPolicyPort{port(tcp, "web")}, pods)},
			[]Flow{flow(me, it, tcp, 8080)}, []Flow{flow(me, it, tcp, 80), flow(me, that, tcp, 8080)}},
		{"policies add up", []networkingv1.NetworkPolicySpec{{}, in(pods), in(block("192.0.2.7/32"))},
			[]Flow{flow(it, me, tcp, 80), flow(outside, me, tcp, 80)}, []Flow{flow(that, me, tcp, 80)}},
		{"another pod's policy", []networkingv1.NetworkPolicySpec{{PodSelector: *byLabel("app", "peer")}}, []Flow{flow(it, me, tcp, 80)}, nil},
	} {
		var list []*Policy
		for _, spec := range row.specs {
			list = append(list, Compile(netpol("shop", string(rune('a'+len(list))), spec)))
		}
		list = append(list, Compile(netpol("other", "elsewhere", networkingv1.NetworkPolicySpec{})))
		input := Input{Policies: list, Namespaces: namespaces, Locals: []Local{localAt(mine)}, Ranges: ranges()}
		for _, p := range []*corev1.Pod{mine, peer, other, host, ended} {
			r := record(p)
			input.Pods = append(input.Pods, &r)
		}
		rules := Plan(input)
		for _, f := range row.allowed {
			if !rules.Allows(f) {
				t.Errorf("%s: %v is refused", row.what, f)
			}
		}
		for _, f := range row.other {
			if rules.Allows(f) {
				t.Errorf("%s: %v is allowed", row.what, f)
			}
		}
		slices.Reverse(input.Policies)
		slices.Reverse(input.Pods)
		if again := Plan(input); !reflect.DeepEqual(render(rules), render(again)) {
			t.Errorf("%s: the order of the input changes the rules", row.what)
		}
	}
}

// TestPlanOfAddresses checks who has an address that several pods claim.
func TestPlanOfAddresses(t *testing.T) {
	t.Parallel()
	mine := podAt("shop", "mine", "10.244.1.2", nil)
	old := podAt("shop", "old", "10.244.2.2", map[string]string{"app": "peer"})
	young := podAt("shop", "young", "10.244.2.2", nil)
	young.CreationTimestamp = metav1.Unix(1, 0)
	// A pod elsewhere claims the address of the pod of this node.
	liar := podAt("shop", "liar", "10.244.1.2", map[string]string{"app": "peer"})
	liar.CreationTimestamp = metav1.Unix(2, 0)
	outside := podAt("shop", "outside", "192.0.2.7", map[string]string{"app": "peer"})
	// Its node claims an address of another node's range.
	foreign := podAt("shop", "foreign", "10.244.1.7", map[string]string{"app": "peer"})
	foreign.Spec.NodeName = "node-2"
	stranger := podAt("shop", "stranger", "10.244.3.7", map[string]string{"app": "peer"})
	stranger.Spec.NodeName = "node-3"
	input := Input{
		Policies: []*Policy{Compile(netpol("shop", "p", networkingv1.NetworkPolicySpec{Ingress: ingressFrom(networkingv1.NetworkPolicyPeer{PodSelector: byLabel("app", "peer")})}))},
		Locals:   []Local{localAt(mine)}, Ranges: ranges(),
	}
	for _, p := range []*corev1.Pod{old, young, liar, outside, foreign, stranger} {
		r := record(p)
		input.Pods = append(input.Pods, &r)
	}
	for _, s := range Plan(input).sets {
		if len(s.elements) > 0 {
			t.Errorf("the group has %v, want none", s.elements)
		}
	}
	input.Locals = append(input.Locals, UnknownLocal("orphan", netip.MustParseAddr("10.244.1.9")))
	rules := Plan(input)
	for _, f := range []Flow{{From: netip.MustParseAddr("10.244.1.9"), To: mustAddr("192.0.2.7")}, {From: mustAddr("192.0.2.7"), To: mustAddr("10.244.1.9")}} {
		if rules.Allows(f) {
			t.Errorf("%v of an unknown pod is allowed", f)
		}
	}
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestSelectorsThatCannotBeParsed checks that they select no peer, and every pod of the namespace.
func TestSelectorsThatCannotBeParsed(t *testing.T) {
	t.Parallel()
	bad := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}
	mine, peer := podAt("shop", "mine", "10.244.1.2", nil), podAt("shop", "peer", "10.244.2.2", nil)
	r := record(peer)
	rules := Plan(Input{
		Policies: []*Policy{Compile(netpol("shop", "p", networkingv1.NetworkPolicySpec{PodSelector: *bad, Ingress: ingressFrom(networkingv1.NetworkPolicyPeer{PodSelector: bad})}))},
		Locals:   []Local{localAt(mine)}, Pods: []*Pod{&r}, Ranges: ranges(),
	})
	if rules.Allows(Flow{mustAddr("10.244.2.2"), mustAddr("10.244.1.2"), corev1.ProtocolTCP, 80}) {
		t.Error("a policy with a selector that cannot be parsed fails open")
	}
}

// TestRecord checks that a record survives the wire and keeps what it needs.
func TestRecord(t *testing.T) {
	t.Parallel()
	p := podAt("shop", "a", "10.244.1.2", map[string]string{"app": "a"})
	b, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var got Pod
	if err := got.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	if want := record(p); !reflect.DeepEqual(got, want) || got.text != "10.244.1.2" || !slices.Equal(got.Ports, []NamedPort{{"web", corev1.ProtocolTCP, 8080}}) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
