package client

import (
	"context"
	"net"
	"slices"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"

	"google.golang.org/grpc/resolver"
)

// portNames are the ports of the Service kubernetes that serve gRPC, the preferred one first.
var portNames = []string{"grpc", "https"}

// follow tells update the addresses of the apiservers, beside the given ones, until stop is called.
// While the EndpointSlices cannot be watched, it leaves them as they were.
func follow(c *Client, given []resolver.Address, update func(resolver.State)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	cache := NewCache[*discoveryv1.EndpointSlice](c, CacheOptions[*discoveryv1.EndpointSlice]{
		Namespace: "default", LabelSelector: discoveryv1.LabelServiceName + "=kubernetes",
	})
	cache.Subscribe(func(Event[*discoveryv1.EndpointSlice]) {
		update(resolver.State{Addresses: addresses(given, cache.List())})
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cache.Run(ctx) // it returns nil when ctx ends, and repeats whatever fails
	}()
	return func() {
		cancel()
		<-done
	}
}

// addresses returns the given addresses, and those of the ready endpoints that are not among them.
func addresses(given []resolver.Address, list []*discoveryv1.EndpointSlice) []resolver.Address {
	out := slices.Clone(given)
	for _, s := range list {
		port, ok := grpcPort(s.Ports)
		if !ok {
			continue
		}
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, ip := range e.Addresses {
				a := resolver.Address{Addr: net.JoinHostPort(ip, strconv.Itoa(int(port))), ServerName: ip}
				if !slices.ContainsFunc(out, func(b resolver.Address) bool { return a.Addr == b.Addr }) {
					out = append(out, a)
				}
			}
		}
	}
	return out
}

func grpcPort(ports []discoveryv1.EndpointPort) (int32, bool) {
	for _, name := range portNames {
		for _, p := range ports {
			if p.Name != nil && *p.Name == name && p.Port != nil {
				return *p.Port, true
			}
		}
	}
	return 0, false
}
