// Package podresources serves the kubelet's API of pod resources, podresources.v1, to
// programs of root on the node: which devices the containers have, and which there are.
// Monitoring agents and network plug-ins read it.
//
// It must never change anything, nor show anything of a pod but its names and devices. CPUs
// and memory are left empty, as by a kubelet whose CPU and memory managers have the policy
// None: no container has any of its own.
package podresources

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/node/internal/device"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/socket"
)

const (
	maxConnections = 64
	maxRequest     = 4 << 10
)

// Devices are the devices of the node; it is implemented by [device.Registry].
type Devices interface {
	Allocations(types.UID) []device.Allocation
	Allocatable() map[string][]device.Device
}

// Server serves the API.
type Server struct {
	podresourcesv1.UnimplementedPodResourcesListerServer
	// Socket is the path of the socket.
	Socket string
	// Pods returns the pods that the node runs. Objects are shared.
	Pods    func() []*corev1.Pod
	Devices Devices
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	l, err := socket.Listen(ctx, s.Socket)
	if err != nil {
		return fmt.Errorf("pod resources: %w", err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequest), grpc.MaxConcurrentStreams(16), grpc.ConnectionTimeout(10*time.Second))
	podresourcesv1.RegisterPodResourcesListerServer(server, s)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	err = server.Serve(connlimit.Wrap(l, connlimit.Limits{Name: "pod resources", Total: maxConnections, Unknown: maxConnections, UnknownPerAddress: maxConnections}))
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("pod resources: %w", err)
	}
	return nil
}

// List returns all pods that have not ended, in the order of their names.
func (s *Server) List(context.Context, *podresourcesv1.ListPodResourcesRequest) (*podresourcesv1.ListPodResourcesResponse, error) {
	pods := slices.DeleteFunc(slices.Clone(s.Pods()), pod.Terminal)
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(pod.Key(a), pod.Key(b)) })
	out := &podresourcesv1.ListPodResourcesResponse{}
	for _, p := range pods {
		out.PodResources = append(out.PodResources, s.resources(p))
	}
	return out, nil
}

// Get returns one pod.
func (s *Server) Get(_ context.Context, req *podresourcesv1.GetPodResourcesRequest) (*podresourcesv1.GetPodResourcesResponse, error) {
	for _, p := range s.Pods() {
		if p.Name == req.PodName && p.Namespace == req.PodNamespace && !pod.Terminal(p) {
			return &podresourcesv1.GetPodResourcesResponse{PodResources: s.resources(p)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "pod %s in namespace %s not found", req.PodName, req.PodNamespace)
}

// GetAllocatableResources returns the healthy devices.
func (s *Server) GetAllocatableResources(context.Context, *podresourcesv1.AllocatableResourcesRequest) (*podresourcesv1.AllocatableResourcesResponse, error) {
	out := &podresourcesv1.AllocatableResourcesResponse{}
	all := s.Devices.Allocatable()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out.Devices = append(out.Devices, devices(name, all[name])...)
	}
	return out, nil
}

func (s *Server) resources(p *corev1.Pod) *podresourcesv1.PodResources {
	out := &podresourcesv1.PodResources{Name: p.Name, Namespace: p.Namespace}
	held := s.Devices.Allocations(p.UID)
	for role, c := range pod.Containers(p) {
		if role == pod.Init || role == pod.Ephemeral { // as the kubelet
			continue
		}
		one := &podresourcesv1.ContainerResources{Name: c.Name}
		for _, a := range held {
			if a.Container == c.Name {
				one.Devices = append(one.Devices, devices(a.Resource, a.Devices)...)
			}
		}
		out.Containers = append(out.Containers, one)
	}
	return out
}

// devices returns devices of one resource, each on its own if it is near to NUMA nodes.
func devices(resource string, list []device.Device) (out []*podresourcesv1.ContainerDevices) {
	var plain []string
	for _, d := range list {
		if len(d.NUMA) == 0 {
			plain = append(plain, d.ID)
			continue
		}
		topology := &podresourcesv1.TopologyInfo{}
		for _, id := range d.NUMA {
			topology.Nodes = append(topology.Nodes, &podresourcesv1.NUMANode{ID: id})
		}
		out = append(out, &podresourcesv1.ContainerDevices{ResourceName: resource, DeviceIds: []string{d.ID}, Topology: topology})
	}
	if len(plain) > 0 {
		out = append(out, &podresourcesv1.ContainerDevices{ResourceName: resource, DeviceIds: plain})
	}
	return out
}
