package provider

import (
	"context"
	"fmt"
	"net/netip"

	"google.golang.org/grpc"

	cloudv1 "keelson.dev/proto/keelson/cloud/v1"
)

// Register serves a provider as keelson.cloud.v1.
func Register(s grpc.ServiceRegistrar, p Provider) {
	cloudv1.RegisterInstanceServiceServer(s, instanceServer{p: p})
	cloudv1.RegisterLoadBalancerServiceServer(s, balancerServer{p: p})
}

type instanceServer struct {
	cloudv1.UnimplementedInstanceServiceServer
	p Provider
}

func (s instanceServer) GetInstance(ctx context.Context, req *cloudv1.GetInstanceRequest) (*cloudv1.GetInstanceResponse, error) {
	i, err := s.p.Instance(ctx, req.GetNodeName(), req.GetProviderId())
	if err != nil {
		return nil, toWire(err)
	}
	resp := &cloudv1.GetInstanceResponse{
		ProviderId: i.ProviderID, Zone: i.Zone, Region: i.Region, InstanceType: i.InstanceType, Shutdown: i.Shutdown,
	}
	for _, a := range i.Addresses {
		resp.Addresses = append(resp.Addresses, &cloudv1.Address{Type: a.Type, Address: a.Address})
	}
	return resp, nil
}

type balancerServer struct {
	cloudv1.UnimplementedLoadBalancerServiceServer
	p Provider
}

func (s balancerServer) EnsureLoadBalancer(ctx context.Context, req *cloudv1.EnsureLoadBalancerRequest) (*cloudv1.EnsureLoadBalancerResponse, error) {
	lb, err := readLoadBalancer(req)
	if err != nil {
		return nil, toWire(err)
	}
	addrs, err := s.p.EnsureLoadBalancer(ctx, lb)
	if err != nil {
		return nil, toWire(err)
	}
	resp := &cloudv1.EnsureLoadBalancerResponse{}
	for _, a := range addrs {
		resp.Addresses = append(resp.Addresses, a.String())
	}
	return resp, nil
}

func readLoadBalancer(req *cloudv1.EnsureLoadBalancerRequest) (LoadBalancer, error) {
	lb := LoadBalancer{
		Cluster: req.GetCluster(), ID: req.GetId(), Service: req.GetService(), HealthCheckNodePort: req.GetHealthCheckNodePort(),
	}
	if s := req.GetRequestedAddress(); s != "" {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return lb, fmt.Errorf("requested address %q: %w", s, ErrInvalid)
		}
		lb.RequestedAddress = addr
	}
	for _, p := range req.GetPorts() {
		lb.Ports = append(lb.Ports, Port{Protocol: p.GetProtocol(), Port: p.GetPort(), NodePort: p.GetNodePort()})
	}
	for _, n := range req.GetNodes() {
		addr, err := netip.ParseAddr(n.GetAddress())
		if err != nil {
			return lb, fmt.Errorf("address %q of node %s: %w", n.GetAddress(), n.GetName(), ErrInvalid)
		}
		lb.Targets = append(lb.Targets, Target{Name: n.GetName(), Address: addr, Weight: n.GetWeight()})
	}
	for _, s := range req.GetSourceRanges() {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return lb, fmt.Errorf("source range %q: %w", s, ErrInvalid)
		}
		lb.SourceRanges = append(lb.SourceRanges, p)
	}
	return lb, nil
}

func (s balancerServer) DeleteLoadBalancer(ctx context.Context, req *cloudv1.DeleteLoadBalancerRequest) (*cloudv1.DeleteLoadBalancerResponse, error) {
	if err := s.p.DeleteLoadBalancer(ctx, req.GetCluster(), req.GetId()); err != nil {
		return nil, toWire(err)
	}
	return &cloudv1.DeleteLoadBalancerResponse{}, nil
}

func (s balancerServer) ListLoadBalancers(ctx context.Context, req *cloudv1.ListLoadBalancersRequest) (*cloudv1.ListLoadBalancersResponse, error) {
	ids, err := s.p.ListLoadBalancers(ctx, req.GetCluster())
	if err != nil {
		return nil, toWire(err)
	}
	return &cloudv1.ListLoadBalancersResponse{Ids: ids}, nil
}
