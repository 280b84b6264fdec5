package runtime

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// WaitReady waits until containerd answers CRI requests.
func WaitReady(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := cri.NewImageServiceClient(conn)
	for {
		_, err := client.ListImages(ctx, &cri.ListImagesRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", socket, err)
		case <-time.After(50 * time.Millisecond):
		}
		conn.ResetConnectBackoff()
	}
}
