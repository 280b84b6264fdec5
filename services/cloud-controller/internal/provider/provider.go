// Package provider is what a cloud does for a cluster: machines behind nodes, and
// addresses in front of Services. A provider is in this process (package local)
// or a program of its own that serves keelson.cloud.v1 (New makes one of a
// connection, and Register serves one); both pass providertest.
//
// It must never know Kubernetes' objects: what a Service or a Node asks for is
// decided by the controllers.
package provider

import (
	"context"
	"errors"
	"net/netip"
)

// ErrNotFound says that a machine does not exist, and that its Node may go.
var ErrNotFound = errors.New("instance not found")

// ErrForeign says that a provider id is not of this provider: nothing is known
// about the machine, and its Node must be left alone.
var ErrForeign = errors.New("provider id of another provider")

// ErrExhausted says that there is no address left.
var ErrExhausted = errors.New("no address left")

// ErrInvalid means that a request can never succeed: an address outside of
// the provider's range, for instance.
var ErrInvalid = errors.New("invalid request")

// ErrTaken means that the requested address belongs to another load balancer.
var ErrTaken = errors.New("address is in use")

// Provider is a cloud.
type Provider interface {
	// Instance describes a node's machine. providerID wins over name if it is
	// not empty. It returns ErrNotFound only when it is certain that the
	// machine does not exist.
	Instance(ctx context.Context, name, providerID string) (Instance, error)
	// EnsureLoadBalancer creates or changes a load balancer until it is as
	// asked, and returns its addresses. The id is the idempotency key. It
	// keeps the addresses that it has unless others are requested.
	EnsureLoadBalancer(ctx context.Context, lb LoadBalancer) ([]netip.Addr, error)
	// DeleteLoadBalancer removes a load balancer; one that does not exist is
	// no error.
	DeleteLoadBalancer(ctx context.Context, cluster, id string) error
	// ListLoadBalancers returns the ids of a cluster's load balancers.
	ListLoadBalancers(ctx context.Context, cluster string) ([]string, error)
}

// Instance is a machine.
type Instance struct {
	ProviderID   string
	Addresses    []Address
	Zone, Region string
	InstanceType string
	// Shutdown is true while the machine exists but does not run.
	Shutdown bool
}

// Address is one address of a machine; Type is a Kubernetes NodeAddressType.
type Address struct {
	Type    string
	Address string
}

// LoadBalancer is how a load balancer should be.
type LoadBalancer struct {
	// Cluster and ID (the Service's uid) name it.
	Cluster, ID string
	// Service is "namespace/name", for people.
	Service string
	Ports   []Port
	Targets []Target
	// RequestedAddress is the address that the user requested; the zero Addr leaves it to
	// the provider.
	RequestedAddress netip.Addr
	// SourceRanges that may call; empty is everybody.
	SourceRanges []netip.Prefix
	// HealthCheckNodePort is the port whose health check passes on nodes with endpoints; 0
	// when every node may take the traffic.
	HealthCheckNodePort int32
}

// Port is one port of a load balancer. NodePort is 0 where nodes accept the
// address itself only.
type Port struct {
	Protocol string
	Port     int32
	NodePort int32
}

// Target is a node that takes traffic.
type Target struct {
	Name    string
	Address netip.Addr
	// Weight is the number of endpoints on it when the traffic stays there; 0
	// counts as 1.
	Weight int32
}
