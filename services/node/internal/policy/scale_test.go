package policy

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/knftables"

	"keelson.dev/services/node/internal/nettest"
)

// many returns a cluster of 1,000 pods in 10 namespaces, 100 of them on this node, and 1,000
// policies: each selects the pods of one application, and allows those of two others, those of
// another namespace, and a block of addresses.
func many(tb testing.TB) Input {
	tb.Helper()
	in := Input{Namespaces: map[string]map[string]string{}, Ranges: map[string][]netip.Prefix{}}
	for node := range 10 {
		in.Ranges[fmt.Sprint(node)] = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(node + 1), 0}), 24)}
	}
	tcp := corev1.ProtocolTCP
	port := func(n int) []networkingv1.NetworkPolicyPort {
		p, end := intstr.FromInt(n), int32(n+10) //nolint:gosec // small
		return []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &p}, {Protocol: &tcp, Port: &p, EndPort: &end}}
	}
	for n := range 10 {
		namespace := fmt.Sprintf("ns-%d", n)
		in.Namespaces[namespace] = map[string]string{"team": fmt.Sprint(n % 3)}
		for i := range 100 {
			node := i % 10
			addr := netip.AddrFrom4([4]byte{10, 244, byte(node + 1), byte(2 + n*10 + i/10)})
			p := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("pod-%d", i), UID: types.UID(addr.String()),
					Labels: map[string]string{"app": fmt.Sprintf("app-%d", i), "tier": fmt.Sprint(i % 3)}},
				Spec:   corev1.PodSpec{NodeName: fmt.Sprint(node)},
				Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: addr.String()},
			}
			r := record(p)
			in.Pods = append(in.Pods, &r)
			if node == 0 {
				l := NewLocal(p, addr)
				l.Link = fmt.Sprintf("veth%d", len(in.Locals))
				in.Locals = append(in.Locals, l)
			}
			app := func(i int) networkingv1.NetworkPolicyPeer {
				return networkingv1.NetworkPolicyPeer{PodSelector: byLabel("app", fmt.Sprintf("app-%d", i%100))}
			}
			in.Policies = append(in.Policies, Compile(netpol(namespace, fmt.Sprintf("policy-%d", i), networkingv1.NetworkPolicySpec{
				PodSelector: *byLabel("app", fmt.Sprintf("app-%d", i)),
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
				Ingress: []networkingv1.NetworkPolicyIngressRule{
					{From: []networkingv1.NetworkPolicyPeer{app(i + 1), app(i + 2)}, Ports: port(8000 + i)},
					{From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: byLabel("team", fmt.Sprint(i%3)), PodSelector: byLabel("tier", fmt.Sprint(i%3))}}},
				},
				Egress: []networkingv1.NetworkPolicyEgressRule{
					{To: []networkingv1.NetworkPolicyPeer{app(i + 3), {IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}}}},
				},
			})))
		}
	}
	return in
}

// BenchmarkPlan computes the rules of a node.
func BenchmarkPlan(b *testing.B) {
	in := many(b)
	b.ReportAllocs()
	for b.Loop() {
		Plan(in)
	}
}

// BenchmarkApply applies them to the kernel: all of them, the change of one policy, and a pod that
// another node starts. It reports the objects in the kernel.
func BenchmarkApply(b *testing.B) {
	in := many(b)
	ns := nettest.New(b, "node")
	changed := in
	changed.Policies = append([]*Policy(nil), in.Policies...)
	changed.Policies[0] = Compile(netpol("ns-0", "policy-0", denyAll))
	started := in
	extra := *in.Pods[3]
	extra.at(netip.MustParseAddr("10.244.4.200"))
	started.Pods = append(append([]*Pod(nil), in.Pods...), &extra)
	for name, inputs := range map[string][2]Input{"full": {{}, in}, "policy": {in, changed}, "pod": {in, started}} {
		b.Run(name, func(b *testing.B) {
			ns.Must(func() error {
				nft, err := knftables.New(knftables.IPv4Family, TableName)
				if err != nil {
					return err
				}
				var have *table
				operations := 0
				apply := func(next *table) error {
					tx := nft.NewTransaction()
					if have == nil {
						tx.Add(&knftables.Table{})
						tx.Delete(&knftables.Table{})
						next.create(tx)
					} else {
						have.update(tx, next)
					}
					operations += tx.NumOperations()
					have = next
					return nft.Run(b.Context(), tx)
				}
				if name != "full" {
					if err := apply(render(Plan(inputs[0]))); err != nil {
						return err
					}
				}
				operations = 0
				n := 0
				for b.Loop() {
					if name == "full" {
						have = nil
					}
					n++
					next := inputs[n%2] // there and back
					if name == "full" {
						next = in
					}
					if err := apply(render(Plan(next))); err != nil {
						return err
					}
				}
				b.ReportMetric(float64(operations)/float64(b.N), "operations/op")
				sets, elements, chains, rules := have.count()
				b.ReportMetric(float64(sets), "sets")
				b.ReportMetric(float64(elements), "elements")
				b.ReportMetric(float64(chains), "chains")
				b.ReportMetric(float64(rules), "rules")
				return nil
			})
		})
	}
}

func (t *table) count() (sets, elements, chains, rules int) {
	for _, s := range t.sets {
		sets++
		elements += len(s.elements)
	}
	for _, m := range t.jumps {
		elements += len(m)
	}
	for _, c := range t.chains {
		chains++
		rules += len(c)
	}
	return sets, elements, chains, rules
}
