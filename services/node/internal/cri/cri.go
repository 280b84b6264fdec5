// Package cri is the node's view of its container runtime: a client of CRI v1, and the
// state of one pod as the runtime reports it.
//
// It must never make decisions; it only reads state and executes calls. It never retries
// calls that create or start something: the caller must read the state again first.
package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/plaintext"
)

const (
	// callTimeout bounds every call that does not have a bound of its own.
	callTimeout = 2 * time.Minute
	// readTimeout bounds calls that only read the runtime's state from memory.
	readTimeout = 15 * time.Second
	// maxMessage is the maximum size of a message in bytes, in both directions.
	maxMessage = 16 << 20
)

// Client is a CRI v1 client of one runtime. It is safe for concurrent use and reconnects
// when the runtime comes back.
type Client struct {
	conn    *grpc.ClientConn
	runtime runtimev1.RuntimeServiceClient
	image   runtimev1.ImageServiceClient
}

// Dial returns a client of the runtime at endpoint, for instance "unix:///path". It does
// not wait for the runtime to answer.
func Dial(endpoint string) (*Client, error) {
	conn, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("container runtime %s: %w", endpoint, err)
	}
	return &Client{conn: conn, runtime: runtimev1.NewRuntimeServiceClient(conn), image: runtimev1.NewImageServiceClient(conn)}, nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

// Version returns the runtime's name and version.
func (c *Client) Version(ctx context.Context) (*runtimev1.VersionResponse, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	return c.runtime.Version(ctx, &runtimev1.VersionRequest{Version: "v1"})
}

// Status returns the runtime's own conditions, RuntimeReady and NetworkReady.
func (c *Client) Status(ctx context.Context, timeout time.Duration) (*runtimev1.StatusResponse, error) {
	ctx, cancel := bounded(ctx, timeout)
	defer cancel()
	return c.runtime.Status(ctx, &runtimev1.StatusRequest{})
}

// CgroupDriver asks the runtime which cgroup driver it uses. A runtime that is too old to
// answer (containerd before 2.0) is assumed to use cgroupfs.
func (c *Client) CgroupDriver(ctx context.Context) (runtimev1.CgroupDriver, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.RuntimeConfig(ctx, &runtimev1.RuntimeConfigRequest{})
	switch {
	case Unimplemented(err):
		return runtimev1.CgroupDriver_CGROUPFS, nil
	case err != nil:
		return 0, fmt.Errorf("runtime configuration: %w", err)
	case resp.GetLinux() == nil:
		return runtimev1.CgroupDriver_CGROUPFS, nil
	}
	return resp.Linux.CgroupDriver, nil
}

// RunSandbox creates and starts a pod's sandbox, including its network.
func (c *Client) RunSandbox(ctx context.Context, config *runtimev1.PodSandboxConfig, handler string) (string, error) {
	ctx, cancel := bounded(ctx, 2*callTimeout)
	defer cancel()
	resp, err := c.runtime.RunPodSandbox(ctx, &runtimev1.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return "", err
	}
	return resp.PodSandboxId, nil
}

// StopSandbox stops a sandbox and tears down its network. It is safe to repeat.
func (c *Client) StopSandbox(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.StopPodSandbox(ctx, &runtimev1.StopPodSandboxRequest{PodSandboxId: id})
	return ignoreNotFound(err)
}

// RemoveSandbox removes a sandbox and what is left of its containers.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.RemovePodSandbox(ctx, &runtimev1.RemovePodSandboxRequest{PodSandboxId: id})
	return ignoreNotFound(err)
}

// SandboxStatus returns the status of one sandbox. With verbose, info holds details
// specific to the runtime, including the network namespace.
func (c *Client) SandboxStatus(ctx context.Context, id string, verbose bool) (*runtimev1.PodSandboxStatusResponse, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	return c.runtime.PodSandboxStatus(ctx, &runtimev1.PodSandboxStatusRequest{PodSandboxId: id, Verbose: verbose})
}

// CreateContainer creates a container in a sandbox.
func (c *Client) CreateContainer(ctx context.Context, sandbox string, config *runtimev1.ContainerConfig, sandboxConfig *runtimev1.PodSandboxConfig) (string, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	resp, err := c.runtime.CreateContainer(ctx, &runtimev1.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: sandboxConfig})
	if err != nil {
		return "", err
	}
	return resp.ContainerId, nil
}

// StartContainer starts a container that was created.
func (c *Client) StartContainer(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.StartContainer(ctx, &runtimev1.StartContainerRequest{ContainerId: id})
	return err
}

// StopContainer sends the container its stop signal and, after grace, SIGKILL. A grace of
// zero kills it at once.
func (c *Client) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	ctx, cancel := bounded(ctx, callTimeout+grace)
	defer cancel()
	seconds := int64((grace + time.Second - 1) / time.Second)
	_, err := c.runtime.StopContainer(ctx, &runtimev1.StopContainerRequest{ContainerId: id, Timeout: seconds})
	return ignoreNotFound(err)
}

// RemoveContainer removes a container that has ended.
func (c *Client) RemoveContainer(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.RemoveContainer(ctx, &runtimev1.RemoveContainerRequest{ContainerId: id})
	return ignoreNotFound(err)
}

// ContainerStatus returns the status of one container.
func (c *Client) ContainerStatus(ctx context.Context, id string) (*runtimev1.ContainerStatus, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.ContainerStatus(ctx, &runtimev1.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return nil, err
	}
	if resp.Status == nil {
		return nil, fmt.Errorf("container %s: the runtime returned no status", id)
	}
	return resp.Status, nil
}

// UpdateContainerResources changes the limits of a running container.
func (c *Client) UpdateContainerResources(ctx context.Context, id string, r *runtimev1.LinuxContainerResources) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	_, err := c.runtime.UpdateContainerResources(ctx, &runtimev1.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

// ReopenLog makes the runtime reopen a container's log file.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	_, err := c.runtime.ReopenContainerLog(ctx, &runtimev1.ReopenContainerLogRequest{ContainerId: id})
	return err
}

// ExecSync runs a command to completion and returns its stdout, stderr and exit code. An
// error that satisfies [TimedOut] means that timeout passed first. A timeout of zero means
// no limit.
func (c *Client) ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) ([]byte, []byte, int32, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = bounded(ctx, timeout+2*time.Second)
		defer cancel()
	}
	seconds := int64((timeout + time.Second - 1) / time.Second)
	resp, err := c.runtime.ExecSync(ctx, &runtimev1.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: seconds})
	if err != nil {
		return nil, nil, 0, err
	}
	return resp.Stdout, resp.Stderr, resp.ExitCode, nil
}

// ExecURL returns the URL at which the runtime serves the streams of an exec.
func (c *Client) ExecURL(ctx context.Context, req *runtimev1.ExecRequest) (string, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.Exec(ctx, req)
	return resp.GetUrl(), err
}

// AttachURL returns the URL at which the runtime serves the streams of an attach.
func (c *Client) AttachURL(ctx context.Context, req *runtimev1.AttachRequest) (string, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.Attach(ctx, req)
	return resp.GetUrl(), err
}

// Events calls f for each container event until ctx ends or the stream breaks. If the
// runtime does not support events, the error satisfies [Unimplemented].
func (c *Client) Events(ctx context.Context, f func(*runtimev1.ContainerEventResponse)) error {
	stream, err := c.runtime.GetContainerEvents(ctx, &runtimev1.GetEventsRequest{})
	if err != nil {
		return err
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f(event)
	}
}

// Stats returns the usage of all containers.
func (c *Client) Stats(ctx context.Context) ([]*runtimev1.ContainerStats, error) {
	ctx, cancel := bounded(ctx, readTimeout)
	defer cancel()
	resp, err := c.runtime.ListContainerStats(ctx, &runtimev1.ListContainerStatsRequest{})
	if err != nil {
		return nil, err
	}
	return resp.Stats, nil
}

// Unimplemented reports whether err means that the runtime does not implement the call.
func Unimplemented(err error) bool { return status.Code(err) == codes.Unimplemented }

// NotFound reports whether err means that the object does not exist in the runtime.
func NotFound(err error) bool { return status.Code(err) == codes.NotFound }

// TimedOut reports whether err means that a deadline passed before the runtime had
// finished.
func TimedOut(err error) bool {
	return status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}

// Down reports whether err means that the runtime could not be reached.
func Down(err error) bool { return status.Code(err) == codes.Unavailable }

func ignoreNotFound(err error) error {
	if NotFound(err) {
		return nil
	}
	return err
}

// maxErrorText is the maximum length of Message's result in bytes.
const maxErrorText = 4 << 10

// rpcNoise matches the prefix of gRPC errors.
var rpcNoise = regexp.MustCompile(`rpc error: code = [\w()]+ desc = `)

// Message returns an error's text as shown in a pod's status: without gRPC's code prefixes,
// wherever they occur, without control characters, and bounded in length.
func Message(err error) string {
	return plaintext.Clean(rpcNoise.ReplaceAllString(err.Error(), ""), maxErrorText)
}
