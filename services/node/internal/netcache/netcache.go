// Package netcache holds what a node's network components read from the cluster: one cache
// each of Services, EndpointSlices and Nodes, shared by the pod network, the service proxy
// and cluster DNS. Large fields that none of them reads are dropped.
//
// It must never write to the cluster.
package netcache

import (
	"context"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/proxy"
)

// Names of the indexes.
const (
	byService   = "service"   // EndpointSlices by namespace/name of their Service
	byAddress   = "address"   // Services by ClusterIP, EndpointSlices by endpoint address
	byNamespace = "namespace" // Services by namespace
)

// Set is the set of caches. Create one per process with New, call Run, and pass the Set to
// proxy.Config, dns.Config and cni.RunConfig.
type Set struct {
	services *client.Cache[*corev1.Service]
	slices   *client.Cache[*discoveryv1.EndpointSlice]
	nodes    *client.Cache[*corev1.Node]
	synced   chan struct{}
}

// New returns an empty Set. Run fills the caches.
func New(c *client.Client) *Set {
	return &Set{
		services: client.NewCache(c, client.CacheOptions[*corev1.Service]{
			Transform: func(s *corev1.Service) *corev1.Service { trim(s); return s },
			Indexes: map[string]func(*corev1.Service) []string{
				byAddress:   serviceAddresses,
				byNamespace: func(s *corev1.Service) []string { return []string{s.Namespace} },
			},
		}),
		slices: client.NewCache(c, client.CacheOptions[*discoveryv1.EndpointSlice]{
			Transform: func(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice { trim(s); return s },
			Indexes: map[string]func(*discoveryv1.EndpointSlice) []string{
				byService: sliceService,
				byAddress: sliceAddresses,
			},
		}),
		nodes: client.NewCache(c, client.CacheOptions[*corev1.Node]{
			Transform: trimNode,
		}),
		synced: make(chan struct{}),
	}
}

// Run keeps the caches up to date until ctx ends.
func (s *Set) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{s.services.Run, s.slices.Run, s.nodes.Run} {
		wg.Go(func() {
			defer cancel()
			_ = run(ctx) // a Cache runs until ctx ends and retries on its own
		})
	}
	wg.Go(func() {
		for _, synced := range []<-chan struct{}{s.services.Synced(), s.slices.Synced(), s.nodes.Synced()} {
			select {
			case <-synced:
			case <-ctx.Done():
				return
			}
		}
		close(s.synced)
	})
	wg.Wait()
	return nil
}

// Synced returns a channel that is closed once all caches hold the cluster's state.
func (s *Set) Synced() <-chan struct{} { return s.synced }

// Nodes returns the cache of Nodes, with names, labels, spec, addresses and conditions.
func (s *Set) Nodes() *client.Cache[*corev1.Node] { return s.nodes }

// Service returns a Service, and whether it exists.
func (s *Set) Service(namespace, name string) (*corev1.Service, bool) {
	return s.services.Get(namespace, name)
}

// Services returns all Services.
func (s *Set) Services() []*corev1.Service { return s.services.List() }

// ServiceSlices returns the EndpointSlices of a Service.
func (s *Set) ServiceSlices(namespace, name string) []*discoveryv1.EndpointSlice {
	return s.slices.ByIndex(byService, namespace+"/"+name)
}

// ServicesAt returns the Services with the given ClusterIP.
func (s *Set) ServicesAt(addr netip.Addr) []*corev1.Service {
	return s.services.ByIndex(byAddress, addr.String())
}

// SlicesAt returns the EndpointSlices with an endpoint at the given address.
func (s *Set) SlicesAt(addr netip.Addr) []*discoveryv1.EndpointSlice {
	return s.slices.ByIndex(byAddress, addr.String())
}

// HasNamespace reports whether a namespace has at least one Service.
func (s *Set) HasNamespace(namespace string) bool {
	return len(s.services.ByIndex(byNamespace, namespace)) > 0
}

// Zone returns a node's zone, or "".
func (s *Set) Zone(node string) string {
	if n, ok := s.nodes.Get("", node); ok {
		return n.Labels[corev1.LabelTopologyZone]
	}
	return ""
}

// Subscribe calls f for every change of a Service or of its EndpointSlices.
func (s *Set) Subscribe(f func(proxy.Change)) {
	s.services.Subscribe(func(e client.Event[*corev1.Service]) {
		f(proxy.Change{Service: types.NamespacedName{Namespace: e.Object.Namespace, Name: e.Object.Name}, Traceparent: e.Traceparent})
	})
	s.slices.Subscribe(func(e client.Event[*discoveryv1.EndpointSlice]) {
		for _, slice := range []*discoveryv1.EndpointSlice{e.Object, e.Old} {
			if slice == nil || slice.Labels[discoveryv1.LabelServiceName] == "" {
				continue
			}
			f(proxy.Change{
				Service:     types.NamespacedName{Namespace: slice.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]},
				Traceparent: e.Traceparent,
			})
		}
	})
}

// trim drops large fields that no reader of the caches uses.
func trim(o metav1.Object) {
	o.SetManagedFields(nil)
	if a := o.GetAnnotations(); a != nil {
		const ranges = corev1.AnnotationLoadBalancerSourceRangesKey
		kept := map[string]string(nil)
		if v, ok := a[ranges]; ok {
			kept = map[string]string{ranges: v}
		}
		o.SetAnnotations(kept)
	}
}

func trimNode(n *corev1.Node) *corev1.Node {
	trim(n)
	n.Status = corev1.NodeStatus{Addresses: n.Status.Addresses, Conditions: n.Status.Conditions}
	return n
}

func serviceAddresses(s *corev1.Service) []string {
	return append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...)
}

func sliceService(s *discoveryv1.EndpointSlice) []string {
	name := s.Labels[discoveryv1.LabelServiceName]
	if name == "" {
		return nil
	}
	return []string{s.Namespace + "/" + name}
}

func sliceAddresses(s *discoveryv1.EndpointSlice) []string {
	var out []string
	for i := range s.Endpoints {
		out = append(out, s.Endpoints[i].Addresses...)
	}
	return out
}
