package cri

import (
	"context"
	"fmt"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Running lists the running containers of pods.
func (c *Client) Running(ctx context.Context) ([]*runtimev1.Container, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.ListContainers(ctx, &runtimev1.ListContainersRequest{Filter: &runtimev1.ContainerFilter{
		State: &runtimev1.ContainerStateValue{State: runtimev1.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return resp.GetContainers(), nil
}

// ImageUsage is the space that the runtime's images take, in bytes and inodes.
type ImageUsage struct {
	// Mountpoint is a directory on the file system that holds the images.
	Mountpoint   string
	Used, Inodes uint64
}

// ImageUsage returns what the images and writable layers take.
func (c *Client) ImageUsage(ctx context.Context) (ImageUsage, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.image.ImageFsInfo(ctx, &runtimev1.ImageFsInfoRequest{})
	if err != nil {
		return ImageUsage{}, fmt.Errorf("image file system: %w", err)
	}
	for _, fs := range resp.GetImageFilesystems() {
		if p := fs.GetFsId().GetMountpoint(); p != "" {
			return ImageUsage{Mountpoint: p, Used: fs.GetUsedBytes().GetValue(), Inodes: fs.GetInodesUsed().GetValue()}, nil
		}
	}
	return ImageUsage{}, nil
}
