// Package provider defines what a cloud does for a cluster: it provides machines for
// nodes and addresses for Services. A provider is either in this process (package
// local) or a separate program that serves keelson.cloud.v1 (New returns a client for a
// connection, and Register serves a provider). Both pass providertest.
//
// It must never know Kubernetes' objects: the controllers decide what a Service or a
// Node needs.
package provider

import (
	"context"
	"errors"
	"net/netip"
)

// ErrNotFound means that a machine does not exist, so that its Node may be deleted.
var ErrNotFound = errors.New("instance not found")

// ErrForeign means that a provider id belongs to another provider: nothing is known
// about the machine, and its Node must be left alone.
var ErrForeign = errors.New("provider id of another provider")

// ErrExhausted means that there is no address left.
var ErrExhausted = errors.New("no address left")

// ErrInvalid means that a request can never succeed: an address outside of
// the provider's range, for instance.
var ErrInvalid = errors.New("invalid request")

// ErrTaken means that the requested address belongs to another load balancer.
var ErrTaken = errors.New("address is in use")

// Provider is a cloud.
type Provider interface {
	// Instance returns a node's machine. If providerID is not empty, it takes
	// precedence over name. Instance returns ErrNotFound only if it is certain that the
	// machine does not exist.
	Instance(ctx context.Context, name, providerID string) (Instance, error)
	// EnsureLoadBalancer creates a load balancer, or changes it to match the request,
	// and returns its addresses. The id is the idempotency key. Existing addresses are
	// kept unless others are requested.
	EnsureLoadBalancer(ctx context.Context, lb LoadBalancer) ([]netip.Addr, error)
	// DeleteLoadBalancer removes a load balancer. It is no error if it does not exist.
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

// LoadBalancer is the desired state of a load balancer.
type LoadBalancer struct {
	// Cluster and ID (the Service's uid) identify it.
	Cluster, ID string
	// Service is "namespace/name", for people to read.
	Service string
	Ports   []Port
	Targets []Target
	// RequestedAddress is the address that the user requested; the zero Addr leaves it to
	// the provider.
	RequestedAddress netip.Addr
	// SourceRanges are the addresses that may connect; empty means all.
	SourceRanges []netip.Prefix
	// HealthCheckNodePort is the port whose health check passes on nodes with
	// endpoints; 0 if every node may take the traffic.
	HealthCheckNodePort int32
}

// Port is one port of a load balancer. NodePort is 0 if nodes accept only traffic to
// the load balancer's own address.
type Port struct {
	Protocol string
	Port     int32
	NodePort int32
}

// Target is a node that takes traffic.
type Target struct {
	Name    string
	Address netip.Addr
	// Weight is the number of endpoints on the node if traffic must stay on it; 0
	// counts as 1.
	Weight int32
}
