package policy

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/node/internal/nettest"
)

// TestRandom takes -seed and -pairs; 0 pairs means those that CI has time for.
var (
	seed  = flag.Uint64("seed", 1, "seed of the random policies")
	pairs = flag.Int("pairs", 300, "number of connections to try")
)

// TestRandom compares random policies, as the kernel enforces them on real connections between pods
// on two nodes, with a plain evaluation of the API's rules, which shares no code with the package.
func TestRandom(t *testing.T) {
	r := newRig(t)
	random := rand.New(rand.NewPCG(*seed, 0)) //nolint:gosec // a test needs no secrecy
	t.Logf("seed %d, %d pairs", *seed, *pairs)
	g := &generator{random}
	namespaces := map[string]map[string]string{}
	for i, name := range []string{"n1", "n2", "n3"} {
		namespaces[name] = map[string]string{"kubernetes.io/metadata.name": name, "team": string(rune('a' + i%2))}
	}
	r.set(func(s *source) { s.namespaces = namespaces })
	for i := range 10 {
		r.pod(i%2, g.one("n1", "n2", "n3"), fmt.Sprintf("p%d", i), g.labels())
	}
	names := slices.Sorted(maps.Keys(r.pods))
	for tried := 0; tried < *pairs; {
		var policies []*networkingv1.NetworkPolicy
		for i := range 1 + random.IntN(5) {
			policies = append(policies, netpol(g.one("n1", "n2", "n3"), fmt.Sprintf("policy-%d", i), g.policy(r)))
		}
		r.set(func(s *source) { s.policies = policies })
		truth := reference{policies, namespaces, r.pods}
		var wg sync.WaitGroup
		room := make(chan struct{}, 16)
		for range min(60, *pairs-tried) {
			tried++
			from, to := r.pods[g.one(names...)], r.pods[g.one(names...)]
			network, port := g.one("tcp", "udp"), uint16(80+random.IntN(2))
			want := truth.allows(from, to, network, port)
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				patience := brief
				if want {
					patience = nettest.Patience
				}
				if _, err := from.CallWithin(patience, network, to.at(port)); (err == nil) != want {
					t.Errorf("%s → %s %s/%d: %v, want it to be allowed: %v", from.Name, to.Name, network, port, err, want)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			for _, p := range policies {
				t.Logf("%s/%s: %+v", p.Namespace, p.Name, p.Spec.String())
			}
			for _, name := range names {
				t.Logf("%s: %s %s %v", name, r.pods[name].addr, r.pods[name].pod.Namespace, r.pods[name].pod.Labels)
			}
			t.Fatalf("%s\n%s", r.rules(0), r.rules(1))
		}
	}
}

// generator makes random policies.
type generator struct{ *rand.Rand }

func (g *generator) one(list ...string) string { return list[g.IntN(len(list))] }

func (g *generator) labels() map[string]string {
	return map[string]string{"app": g.one("a", "b", "c"), "tier": g.one("x", "y")}
}

func (g *generator) selector(key string, values ...string) *metav1.LabelSelector {
	switch g.IntN(6) {
	case 0:
		return &metav1.LabelSelector{}
	case 1, 2:
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: g.one(values...)}}
	}
	op := []metav1.LabelSelectorOperator{metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist}[g.IntN(4)]
	r := metav1.LabelSelectorRequirement{Key: g.one(key, key, key, "none"), Operator: op}
	if op == metav1.LabelSelectorOpIn || op == metav1.LabelSelectorOpNotIn {
		r.Values = []string{g.one(values...), g.one(values...)}
	}
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{r}}
}

func (g *generator) pods() *metav1.LabelSelector {
	if g.IntN(2) == 0 {
		return g.selector("tier", "x", "y")
	}
	return g.selector("app", "a", "b", "c")
}

func (g *generator) peers(r *rig) (out []networkingv1.NetworkPolicyPeer) {
	for range g.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		switch g.IntN(4) {
		case 0:
			p.PodSelector = g.pods()
		case 1:
			p.NamespaceSelector = g.selector("team", "a", "b")
		case 2:
			p.PodSelector, p.NamespaceSelector = g.pods(), g.selector("team", "a", "b")
		case 3:
			names := slices.Sorted(maps.Keys(r.pods))
			addr := r.pods[g.one(names...)].addr
			p.IPBlock = &networkingv1.IPBlock{CIDR: netip.PrefixFrom(addr, 16+g.IntN(17)).Masked().String()}
			cidr := netip.MustParsePrefix(p.IPBlock.CIDR)
			for range g.IntN(3) {
				except := r.pods[g.one(names...)].addr
				if bits := cidr.Bits() + 1 + g.IntN(16); bits <= 32 && cidr.Contains(except) {
					p.IPBlock.Except = append(p.IPBlock.Except, netip.PrefixFrom(except, bits).Masked().String())
				}
			}
		}
		out = append(out, p)
	}
	return out
}

func (g *generator) ports() (out []networkingv1.NetworkPolicyPort) {
	for range g.IntN(3) {
		protocol := corev1.Protocol(g.one("TCP", "UDP", "SCTP"))
		p := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		switch g.IntN(4) {
		case 0:
		case 1:
			name := intstr.FromString(g.one("web", "dns"))
			p.Port = &name
		default:
			first := int32(79 + g.IntN(3)) //nolint:gosec // small
			port := intstr.FromInt32(first)
			p.Port = &port
			if g.IntN(2) == 0 {
				last := first + int32(g.IntN(3)) //nolint:gosec // small
				p.EndPort = &last
			}
		}
		out = append(out, p)
	}
	return out
}

func (g *generator) policy(r *rig) networkingv1.NetworkPolicySpec {
	spec := networkingv1.NetworkPolicySpec{PodSelector: *g.pods()}
	for range g.IntN(3) {
		spec.Ingress = append(spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.peers(r), Ports: g.ports()})
	}
	for range g.IntN(3) {
		spec.Egress = append(spec.Egress, networkingv1.NetworkPolicyEgressRule{To: g.peers(r), Ports: g.ports()})
	}
	switch g.IntN(4) {
	case 0:
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	case 1:
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	case 2:
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	return spec
}

// reference evaluates policies as the API documents them.
type reference struct {
	policies   []*networkingv1.NetworkPolicy
	namespaces map[string]map[string]string
	pods       map[string]*runningPod
}

func (t *reference) allows(from, to *runningPod, network string, port uint16) bool {
	if from == to {
		return true
	}
	out, in := false, false
	mayLeave, mayEnter := false, false
	for _, p := range t.policies {
		types := map[networkingv1.PolicyType]bool{}
		for _, x := range p.Spec.PolicyTypes {
			types[x] = true
		}
		if len(types) == 0 {
			types["Ingress"] = true
			types["Egress"] = len(p.Spec.Egress) > 0
		}
		if types["Egress"] && p.Namespace == from.pod.Namespace && selected(&p.Spec.PodSelector, from.pod.Labels) {
			out = true
			for _, r := range p.Spec.Egress {
				mayLeave = mayLeave || t.peer(p.Namespace, r.To, to) && portIn(r.Ports, to, network, port)
			}
		}
		if types["Ingress"] && p.Namespace == to.pod.Namespace && selected(&p.Spec.PodSelector, to.pod.Labels) {
			in = true
			for _, r := range p.Spec.Ingress {
				mayEnter = mayEnter || t.peer(p.Namespace, r.From, from) && portIn(r.Ports, to, network, port)
			}
		}
	}
	return (!out || mayLeave) && (!in || mayEnter)
}

func (t *reference) peer(namespace string, peers []networkingv1.NetworkPolicyPeer, pod *runningPod) bool {
	for _, p := range peers {
		if p.IPBlock != nil {
			inside := netip.MustParsePrefix(p.IPBlock.CIDR).Contains(pod.addr)
			for _, e := range p.IPBlock.Except {
				inside = inside && !netip.MustParsePrefix(e).Contains(pod.addr)
			}
			if inside {
				return true
			}
			continue
		}
		where := pod.pod.Namespace == namespace
		if p.NamespaceSelector != nil {
			where = selected(p.NamespaceSelector, t.namespaces[pod.pod.Namespace])
		}
		if where && (p.PodSelector == nil || selected(p.PodSelector, pod.pod.Labels)) {
			return true
		}
	}
	return len(peers) == 0
}

func selected(s *metav1.LabelSelector, labels map[string]string) bool {
	for k, v := range s.MatchLabels {
		if labels[k] != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		v, has := labels[e.Key]
		ok := map[metav1.LabelSelectorOperator]bool{
			"In": has && slices.Contains(e.Values, v), "NotIn": !has || !slices.Contains(e.Values, v), "Exists": has, "DoesNotExist": !has,
		}[e.Operator]
		if !ok {
			return false
		}
	}
	return true
}

func portIn(ports []networkingv1.NetworkPolicyPort, to *runningPod, network string, port uint16) bool {
	for _, p := range ports {
		if map[corev1.Protocol]string{"TCP": "tcp", "UDP": "udp"}[*p.Protocol] != network {
			continue
		}
		if p.Port == nil {
			return true
		}
		if p.Port.Type == intstr.String {
			for _, named := range to.pod.Spec.Containers[0].Ports {
				if named.Name == p.Port.StrVal && named.Protocol == *p.Protocol && named.ContainerPort == int32(port) {
					return true
				}
			}
			continue
		}
		last := p.Port.IntVal
		if p.EndPort != nil {
			last = *p.EndPort
		}
		if p.Port.IntVal <= int32(port) && int32(port) <= last {
			return true
		}
	}
	return len(ports) == 0
}
