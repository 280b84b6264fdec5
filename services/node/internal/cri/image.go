package cri

import (
	"context"
	"strings"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageStatus returns an image, or nil if it is not present.
func (c *Client) ImageStatus(ctx context.Context, image string) (*runtimev1.Image, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.image.ImageStatus(ctx, &runtimev1.ImageStatusRequest{Image: &runtimev1.ImageSpec{Image: image}})
	if err != nil {
		return nil, err
	}
	return resp.Image, nil
}

// PullImage pulls an image and returns the runtime's reference to it. Only ctx bounds it:
// the runtime aborts a pull that makes no progress.
func (c *Client) PullImage(ctx context.Context, image string, auth *runtimev1.AuthConfig, sandbox *runtimev1.PodSandboxConfig) (string, error) {
	resp, err := c.image.PullImage(ctx, &runtimev1.PullImageRequest{
		Image:         &runtimev1.ImageSpec{Image: image, UserSpecifiedImage: image},
		Auth:          auth,
		SandboxConfig: sandbox,
	})
	if err != nil {
		return "", err
	}
	return resp.ImageRef, nil
}

// Images lists the images that are present.
func (c *Client) Images(ctx context.Context) ([]*runtimev1.Image, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.image.ListImages(ctx, &runtimev1.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	return resp.Images, nil
}

// RemoveImage removes an image with all its names.
func (c *Client) RemoveImage(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	_, err := c.image.RemoveImage(ctx, &runtimev1.RemoveImageRequest{Image: &runtimev1.ImageSpec{Image: id}})
	return ignoreNotFound(err)
}

// ImageFilesystem returns the mount point of the runtime's image store.
func (c *Client) ImageFilesystem(ctx context.Context) (string, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.image.ImageFsInfo(ctx, &runtimev1.ImageFsInfoRequest{})
	if err != nil {
		return "", err
	}
	for _, fs := range resp.ImageFilesystems {
		if p := fs.GetFsId().GetMountpoint(); p != "" {
			return p, nil
		}
	}
	return "", nil
}

// UsedImages returns the references of the images that containers were created from or that
// are mounted into them.
func (c *Client) UsedImages(ctx context.Context) (map[string]bool, error) {
	list, err := c.listContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, item := range list {
		refs := append(strings.Split(item.Annotations[AnnotationImages], ","), item.ImageRef, item.ImageId, item.GetImage().GetImage())
		for _, ref := range refs {
			if ref != "" {
				out[ref] = true
			}
		}
	}
	return out, nil
}
