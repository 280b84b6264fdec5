package policy

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ranges are the pod ranges of the nodes.
func ranges() map[string][]netip.Prefix {
	return map[string][]netip.Prefix{"node-1": {netip.MustParsePrefix("10.244.1.0/24")}, "node-2": {netip.MustParsePrefix("10.244.2.0/24")}}
}

// source is a Source that tests change.
type source struct {
	mu         sync.Mutex
	unknown    bool
	policies   []*networkingv1.NetworkPolicy
	namespaces map[string]map[string]string
	pods       []*Pod
	caughtUp   error
	changed    []func(bool)
}

func (s *source) Policies() ([]*networkingv1.NetworkPolicy, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policies, !s.unknown
}

func (s *source) Namespaces() map[string]map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces
}

func (s *source) Pods() ([]*Pod, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pods, true
}

func (s *source) Ranges() map[string][]netip.Prefix { return ranges() }

func (s *source) CatchUp(context.Context, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.caughtUp
}

func (s *source) Subscribe(f func(bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = append(s.changed, f)
}

func (s *source) set(change func()) {
	s.mu.Lock()
	change()
	changed := s.changed
	s.mu.Unlock()
	for _, f := range changed {
		f(true)
	}
}

// rig is two nodes with pods, and an Enforcer on each.
type rig struct {
	t         testing.TB
	net       *nettest.Net
	nodes     []*nettest.NS
	source    *source
	enforcers []*Enforcer
	stop      []func()
	pods      map[string]*runningPod
}

type runningPod struct {
	*nettest.NS
	node int
	addr netip.Addr
	pod  *corev1.Pod
}

func (p *runningPod) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(p.addr, port) }

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, net: nettest.NewNet(t, netip.MustParsePrefix("10.89.0.0/24")), source: &source{}, pods: map[string]*runningPod{}}
	for i := range 2 {
		node := r.net.Machine(fmt.Sprintf("node-%d", i+1), nodeAddr(i))
		node.Route(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(2 - i), 0}), 24), nodeAddr(1-i))
		// The tables of the pod network and the proxy make the kernel track connections.
		node.Run("nft", "add table ip others; add chain ip others forward { type filter hook forward priority 50; }; add rule ip others forward ct state invalid counter")
		r.nodes = append(r.nodes, node)
	}
	for range 2 {
		r.enforcers, r.stop = append(r.enforcers, nil), append(r.stop, nil)
	}
	for i := range 2 {
		r.start(i)
	}
	return r
}

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, 0, byte(11 + i)}) }

// start runs an Enforcer on a node, as the node's program does after a start.
func (r *rig) start(i int) {
	r.t.Helper()
	e := New(Config{Source: r.source})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.nodes[i].Go(func() {
		defer close(done)
		if err := e.Run(ctx); err != nil {
			r.t.Errorf("enforcer of node %d: %v", i+1, err)
		}
	})
	r.enforcers[i] = e
	r.stop[i] = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(r.stop[i])
	var running []Local
	for _, p := range r.pods {
		if p.node == i {
			running = append(running, NewLocal(p.pod, p.addr))
		}
	}
	e.Known(running)
}

// pod starts a pod on a node: its network, its servers, and its admission.
func (r *rig) pod(node int, namespace, name string, labels map[string]string) *runningPod {
	r.t.Helper()
	p := r.bare(node, namespace, name, labels)
	r.admit(p)
	return p
}

// bare starts a pod that the enforcer does not know.
func (r *rig) bare(node int, namespace, name string, labels map[string]string) *runningPod {
	r.t.Helper()
	addr := netip.AddrFrom4([4]byte{10, 244, byte(node + 1), byte(2 + len(r.pods))})
	ns := r.nodes[node].Pod(name, addr, netip.AddrFrom4([4]byte{10, 244, byte(node + 1), 1}))
	for _, port := range []uint16{80, 81} {
		ns.Serve("tcp", port)
		ns.Serve("udp", port)
	}
	p := &runningPod{NS: ns, node: node, addr: addr, pod: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "-" + name), Labels: labels},
		Spec: corev1.PodSpec{NodeName: r.nodes[node].Name, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "web", Protocol: corev1.ProtocolTCP, ContainerPort: 80 + int32(len(r.pods)%2)},
			{Name: "dns", Protocol: corev1.ProtocolUDP, ContainerPort: 81},
		}}}},
	}}
	r.pods[name] = p
	return p
}

func (r *rig) admit(p *runningPod) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.enforcers[p.node].Admit(ctx, p.pod, p.addr.String()); err != nil {
		r.t.Fatal(err)
	}
	shown := p.pod.DeepCopy()
	shown.Status.PodIP = p.addr.String()
	rec := record(shown)
	r.set(func(s *source) { s.pods = append(s.pods, &rec) })
}

// set changes what the API has and waits until both nodes have applied it.
func (r *rig) set(change func(s *source)) {
	r.t.Helper()
	r.source.set(func() { change(r.source) })
	for i := range r.enforcers {
		r.flush(i)
	}
}

// flush waits for a pass that began after the call.
func (r *rig) flush(i int) {
	r.t.Helper()
	e := r.enforcers[i]
	e.mu.Lock()
	e.seq++
	want := e.seq
	e.mu.Unlock()
	nudge(e.rush)
	deadline := time.After(time.Minute)
	for {
		e.mu.Lock()
		passed, done, err := e.passed, e.done, e.lastErr
		e.mu.Unlock()
		if done >= want {
			return
		}
		select {
		case <-passed:
		case <-deadline:
			r.t.Fatalf("the change was not applied on node %d: %v", i+1, err)
		}
	}
}

func (r *rig) rules(i int) string {
	out, _ := r.nodes[i].Try("nft", "list", "table", "ip", TableName)
	return out
}

// brief is how long a connection that must not succeed is given.
const brief = 150 * time.Millisecond

// reaches checks one connection.
func (r *rig) reaches(from *nettest.NS, network string, to netip.AddrPort, want bool) {
	r.t.Helper()
	patience := brief
	if want {
		patience = nettest.Patience
	}
	_, err := from.CallWithin(patience, network, to)
	if (err == nil) != want {
		r.t.Errorf("%s → %s/%s: %v, want it to be allowed: %v\n%s\n%s", from.Name, network, to, err, want, r.rules(0), r.rules(1))
	}
}

// netpol returns a policy.
func netpol(namespace, name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + "/" + name), ResourceVersion: fmt.Sprint(version())}, Spec: spec,
	}
}

var version = func() func() int {
	var mu sync.Mutex
	n := 0
	return func() int { mu.Lock(); defer mu.Unlock(); n++; return n }
}()

func byLabel(key, value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

func ingressFrom(peers ...networkingv1.NetworkPolicyPeer) []networkingv1.NetworkPolicyIngressRule {
	return []networkingv1.NetworkPolicyIngressRule{{From: peers}}
}
