package netcache

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/policy"
)

// Policies holds what network policies depend on: the policies, the labels of namespaces, and a small
// record of every pod. The pods are read only once a policy exists, because they are by far the
// largest part. It implements policy.Source.
type Policies struct {
	policies   *client.Cache[*networkingv1.NetworkPolicy]
	namespaces *client.Cache[*metav1.PartialObjectMetadata]
	pods       *client.Cache[*policy.Pod]
	nodes      *client.Cache[*corev1.Node]

	need func() // begins to read the pods
	want <-chan struct{}

	mu      sync.Mutex
	changed []func(urgent bool)
}

// NewPolicies returns empty caches, which Run fills. The nodes are those of a Set.
func NewPolicies(c *client.Client, nodes *client.Cache[*corev1.Node]) *Policies {
	want := make(chan struct{})
	p := &Policies{
		policies: client.NewCache(c, client.CacheOptions[*networkingv1.NetworkPolicy]{
			Transform: func(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy { trim(p); return p },
		}),
		namespaces: client.NewCacheOf(client.Metadata(c, client.KindOf(&corev1.Namespace{})), client.CacheOptions[*metav1.PartialObjectMetadata]{
			Transform: func(n *metav1.PartialObjectMetadata) *metav1.PartialObjectMetadata { trim(n); return n },
		}),
		pods:  client.NewCacheOf(client.PodNetworks(c, func() *policy.Pod { return &policy.Pod{} }), client.CacheOptions[*policy.Pod]{}),
		nodes: nodes, want: want, need: sync.OnceFunc(func() { close(want) }),
	}
	p.policies.Subscribe(func(client.Event[*networkingv1.NetworkPolicy]) { p.notify(true) })
	p.namespaces.Subscribe(func(e client.Event[*metav1.PartialObjectMetadata]) {
		if e.Old == nil || e.Type == client.Deleted || !maps.Equal(e.Old.Labels, e.Object.Labels) {
			p.notify(false)
		}
	})
	p.pods.Subscribe(func(e client.Event[*policy.Pod]) {
		if e.Old == nil || e.Type == client.Deleted || !e.Object.Same(e.Old) {
			p.notify(false)
		}
	})
	nodes.Subscribe(func(e client.Event[*corev1.Node]) {
		if e.Old == nil || e.Type == client.Deleted || !slices.Equal(e.Old.Spec.PodCIDRs, e.Object.Spec.PodCIDRs) {
			p.notify(false)
		}
	})
	return p
}

// Run keeps the caches up to date until ctx ends.
func (p *Policies) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	keep := func(run func(context.Context) error, synced <-chan struct{}) {
		wg.Go(func() { _ = run(ctx) }) // a Cache runs until ctx ends and retries on its own
		wg.Go(func() {
			select {
			case <-synced:
				p.notify(true)
			case <-ctx.Done():
			}
		})
	}
	keep(p.policies.Run, p.policies.Synced())
	keep(p.namespaces.Run, p.namespaces.Synced())
	keep(func(context.Context) error { return nil }, p.nodes.Synced())
	select {
	case <-p.want:
		keep(p.pods.Run, p.pods.Synced())
	case <-ctx.Done():
	}
	wg.Wait()
	return nil
}

func (p *Policies) notify(urgent bool) {
	p.mu.Lock()
	list := p.changed
	p.mu.Unlock()
	for _, f := range list {
		f(urgent)
	}
}

// Subscribe implements policy.Source.
func (p *Policies) Subscribe(f func(urgent bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed = append(p.changed, f)
}

// Policies implements policy.Source.
func (p *Policies) Policies() ([]*networkingv1.NetworkPolicy, bool) {
	known := isClosed(p.policies.Synced()) && isClosed(p.namespaces.Synced()) // before the list is read
	return p.policies.List(), known
}

// Namespaces implements policy.Source.
func (p *Policies) Namespaces() map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, n := range p.namespaces.List() {
		out[n.Name] = n.Labels
	}
	return out
}

// Pods implements policy.Source.
func (p *Policies) Pods() ([]*policy.Pod, bool) {
	p.need()
	known := isClosed(p.pods.Synced()) && isClosed(p.nodes.Synced()) // before the list is read
	return p.pods.List(), known
}

// Ranges implements policy.Source. Only the controller-manager sets them.
func (p *Policies) Ranges() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{}
	for _, n := range p.nodes.List() {
		for _, text := range n.Spec.PodCIDRs {
			if r, err := netip.ParsePrefix(text); err == nil {
				out[n.Name] = append(out[n.Name], r)
			}
		}
	}
	return out
}

// CatchUp implements policy.Source.
func (p *Policies) CatchUp(ctx context.Context, namespace string) error {
	return p.policies.CatchUpIn(ctx, namespace)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
