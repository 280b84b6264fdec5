package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/node/internal/cri"
)

// portForward connects to a port on the loopback interface of a pod.
func (b *Backend) portForward(ctx context.Context, req *nodev1.PortForward, s *Session) error {
	p, err := b.find(req.GetPod())
	if err != nil {
		return err
	}
	if req.GetPort() < 1 || req.GetPort() > 65535 {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid port %d", req.GetPort()))
	}
	var conn net.Conn
	if p.Spec.HostNetwork {
		conn, err = dialLocal(ctx, req.GetPort())
	} else {
		var path string
		if path, err = b.networkOf(ctx, string(p.UID)); err != nil {
			return err
		}
		conn, err = dialInside(ctx, path, req.GetPort())
	}
	if err != nil {
		return fmt.Errorf("unable to do port forwarding: failed to connect to localhost:%d inside namespace of pod %s: %w", req.GetPort(), p.Name, err)
	}
	return pipe(ctx, conn, s)
}

// networkOf returns the path of the network namespace of a pod's sandbox.
func (b *Backend) networkOf(ctx context.Context, uid string) (string, error) {
	state, err := b.Runtime.Pod(ctx, uid)
	if err != nil {
		return "", fmt.Errorf("container runtime: %s", cri.Message(err))
	}
	box := state.Sandbox()
	if box == nil || !box.Ready {
		return "", apierrors.NewBadRequest("unable to forward port because pod is not running")
	}
	resp, err := b.Runtime.SandboxStatus(ctx, box.ID, true)
	if err != nil {
		return "", fmt.Errorf("container runtime: %s", cri.Message(err))
	}
	var info struct {
		PID         int `json:"pid"`
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string } `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
		return "", fmt.Errorf("container runtime: parse the sandbox information: %w", err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" && ns.Path != "" {
			return ns.Path, nil
		}
	}
	if info.PID > 0 {
		return fmt.Sprintf("/proc/%d/ns/net", info.PID), nil
	}
	return "", fmt.Errorf("container runtime: the sandbox has no network namespace")
}

// dialInside connects to a port on the loopback interface of a network namespace. A socket
// stays in the namespace in which it was created. The thread that enters the namespace is
// discarded unless it returned to its own.
func dialInside(ctx context.Context, path string, port int32) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		conn, back, err := visit(ctx, path, port)
		if back {
			runtime.UnlockOSThread()
		}
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// visit enters a namespace, dials, and returns to its own namespace. back is false if it
// could not return.
func visit(ctx context.Context, path string, port int32) (conn net.Conn, back bool, err error) {
	own, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		return nil, true, err
	}
	defer own.Close()
	there, err := os.Open(path)
	if err != nil {
		return nil, true, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, true, fmt.Errorf("enter network namespace: %w", err)
	}
	conn, err = dialLocal(ctx, port)
	if returned := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); returned != nil {
		return conn, false, err
	}
	return conn, true, err
}

// dialLocal connects to a port on loopback, IPv4 first. Each dial is to a single literal
// address, which Go performs on the calling goroutine's thread.
func dialLocal(ctx context.Context, port int32) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout, FallbackDelay: -1}
	conn, err := dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err == nil {
		return conn, nil
	}
	if conn, err6 := dialer.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(int(port)))); err6 == nil {
		return conn, nil
	}
	return nil, err
}
