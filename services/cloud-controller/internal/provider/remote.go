package provider

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cloudv1 "keelson.dev/proto/keelson/cloud/v1"
)

// New returns a provider for a connection to a program that serves keelson.cloud.v1.
func New(conn grpc.ClientConnInterface) Provider {
	return &remote{cloudv1.NewInstanceServiceClient(conn), cloudv1.NewLoadBalancerServiceClient(conn)}
}

type remote struct {
	instances cloudv1.InstanceServiceClient
	balancers cloudv1.LoadBalancerServiceClient
}

func (r *remote) Instance(ctx context.Context, name, providerID string) (Instance, error) {
	resp, err := r.instances.GetInstance(ctx, &cloudv1.GetInstanceRequest{NodeName: name, ProviderId: providerID})
	if err != nil {
		return Instance{}, fromWire("instance "+name, err)
	}
	i := Instance{
		ProviderID: resp.GetProviderId(), Zone: resp.GetZone(), Region: resp.GetRegion(),
		InstanceType: resp.GetInstanceType(), Shutdown: resp.GetShutdown(),
	}
	for _, a := range resp.GetAddresses() {
		i.Addresses = append(i.Addresses, Address{Type: a.GetType(), Address: a.GetAddress()})
	}
	return i, nil
}

func (r *remote) EnsureLoadBalancer(ctx context.Context, lb LoadBalancer) ([]netip.Addr, error) {
	req := &cloudv1.EnsureLoadBalancerRequest{
		Cluster: lb.Cluster, Id: lb.ID, Service: lb.Service, HealthCheckNodePort: lb.HealthCheckNodePort,
	}
	if lb.RequestedAddress.IsValid() {
		req.RequestedAddress = lb.RequestedAddress.String()
	}
	for _, p := range lb.Ports {
		req.Ports = append(req.Ports, &cloudv1.Port{Protocol: p.Protocol, Port: p.Port, NodePort: p.NodePort})
	}
	for _, t := range lb.Targets {
		req.Nodes = append(req.Nodes, &cloudv1.Target{Name: t.Name, Address: t.Address.String(), Weight: t.Weight})
	}
	for _, p := range lb.SourceRanges {
		req.SourceRanges = append(req.SourceRanges, p.String())
	}
	resp, err := r.balancers.EnsureLoadBalancer(ctx, req)
	if err != nil {
		return nil, fromWire("load balancer of "+lb.Service, err)
	}
	var out []netip.Addr
	for _, s := range resp.GetAddresses() {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("load balancer of %s: the provider answers with the address %q", lb.Service, s)
		}
		out = append(out, addr)
	}
	return out, nil
}

func (r *remote) DeleteLoadBalancer(ctx context.Context, cluster, id string) error {
	_, err := r.balancers.DeleteLoadBalancer(ctx, &cloudv1.DeleteLoadBalancerRequest{Cluster: cluster, Id: id})
	if err != nil {
		return fromWire("load balancer "+id, err)
	}
	return nil
}

func (r *remote) ListLoadBalancers(ctx context.Context, cluster string) ([]string, error) {
	resp, err := r.balancers.ListLoadBalancers(ctx, &cloudv1.ListLoadBalancersRequest{Cluster: cluster})
	if err != nil {
		return nil, fromWire("load balancers", err)
	}
	return resp.GetIds(), nil
}

// wire maps the errors of the contract to codes. UNIMPLEMENTED is not among them: it must
// not be taken for NOT_FOUND, after which a Node is deleted.
var wire = []struct {
	err  error
	code codes.Code
}{
	{ErrNotFound, codes.NotFound},
	{ErrForeign, codes.FailedPrecondition},
	{ErrExhausted, codes.ResourceExhausted},
	{ErrInvalid, codes.InvalidArgument},
	{ErrTaken, codes.AlreadyExists},
}

func fromWire(what string, err error) error {
	s := status.Convert(err)
	for _, w := range wire {
		if s.Code() == w.code {
			return fmt.Errorf("%s: %s: %w", what, s.Message(), w.err)
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

func toWire(err error) error {
	for _, w := range wire {
		if errors.Is(err, w.err) {
			return status.Error(w.code, err.Error())
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}
