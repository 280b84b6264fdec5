package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// plugin is a connection to a plug-in, which serves on a socket of its own.
type plugin struct {
	resource, endpoint string

	options *pluginapi.DevicePluginOptions
	conn    *grpc.ClientConn
	client  pluginapi.DevicePluginClient
	stop    context.CancelFunc
}

// dial connects to the plug-in that serves at path, and asks for its options.
func dial(ctx context.Context, resource, path string) (*plugin, error) {
	if info, err := os.Lstat(path); err != nil {
		return nil, err
	} else if info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s is not a socket", path)
	}
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, err
	}
	p := &plugin{resource: resource, endpoint: path, conn: conn, client: pluginapi.NewDevicePluginClient(conn)}
	ctx, cancel := context.WithTimeout(ctx, optionsPatience)
	defer cancel()
	if p.options, err = p.client.GetDevicePluginOptions(ctx, &pluginapi.Empty{}); err != nil {
		return nil, errors.Join(fmt.Errorf("get options of the device plug-in of %s: %w", resource, err), p.close())
	}
	return p, nil
}

func (p *plugin) close() error { return p.conn.Close() }

// watch reads lists of devices until the stream or ctx ends, or listed returns an error.
func (p *plugin) watch(ctx context.Context, listed func([]*pluginapi.Device) error) error {
	stream, err := p.client.ListAndWatch(ctx, &pluginapi.Empty{})
	if err != nil {
		return err
	}
	for {
		list, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := listed(list.Devices); err != nil {
			return err
		}
	}
}

// prefer asks which of the available devices the plug-in prefers, must among them.
func (p *plugin) prefer(ctx context.Context, available, must []string, need int) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	resp, err := p.client.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{
		ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{{
			AvailableDeviceIDs: available, MustIncludeDeviceIDs: must, AllocationSize: int32(need), //nolint:gosec // at most maxDevices.
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("device plugin GetPreferredAllocation rpc failed with err: %w", err)
	}
	if len(resp.ContainerResponses) != 1 {
		return nil, nil
	}
	return resp.ContainerResponses[0].GetDeviceIDs(), nil
}

// allocate tells the plug-in that a container gets devices, and returns its answer for the
// container, encoded.
func (p *plugin) allocate(ctx context.Context, ids []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	resp, err := p.client.Allocate(ctx, &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: ids}},
	})
	if err != nil {
		return nil, fmt.Errorf("rpc error of the device plug-in of %s: %w", p.resource, err)
	}
	if len(resp.ContainerResponses) != 1 {
		return nil, fmt.Errorf("the device plug-in of %s answered for %d containers, want 1", p.resource, len(resp.ContainerResponses))
	}
	data, err := proto.Marshal(resp.ContainerResponses[0])
	if err != nil {
		return nil, err
	}
	if len(data) > maxResponse {
		return nil, fmt.Errorf("the answer of the device plug-in of %s has %d bytes, at most %d are allowed", p.resource, len(data), maxResponse)
	}
	return append([]byte{}, data...), nil // never nil
}

// preStart has the plug-in prepare devices for a start of their container.
func (p *plugin) preStart(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	if _, err := p.client.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: ids}); err != nil {
		return fmt.Errorf("device plugin PreStartContainer rpc failed with err: %w", err)
	}
	return nil
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
