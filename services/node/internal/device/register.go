package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/validation"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/node/internal/socket"
)

// socketName is the name of the socket at which plug-ins register. They watch its directory,
// and register again when the socket is created.
const socketName = "kubelet.sock"

const (
	maxConnections = 64
	maxRequest     = 16 << 10
)

// Run serves registrations until ctx ends. Sockets that plug-ins of an earlier time have left
// are removed, which makes those plug-ins that still run create them again.
func (r *Registry) Run(ctx context.Context) error {
	if err := socket.Private(r.cfg.Dir); err != nil {
		return err
	}
	unlock, err := socket.Lock(r.cfg.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = unlock() }()
	if err := removeSockets(r.cfg.Dir); err != nil {
		return err
	}
	l, err := socket.Listen(ctx, filepath.Join(r.cfg.Dir, socketName))
	if err != nil {
		return fmt.Errorf("device plug-in registration: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	r.base = ctx
	r.mu.Unlock()
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequest), grpc.MaxConcurrentStreams(16), grpc.ConnectionTimeout(10*time.Second))
	pluginapi.RegisterRegistrationServer(server, &registration{r: r})
	stop := context.AfterFunc(ctx, server.Stop)
	err = server.Serve(connlimit.Wrap(l, connlimit.Limits{Name: "device plug-ins", Total: maxConnections, Unknown: maxConnections, UnknownPerAddress: maxConnections}))
	stop()
	r.mu.Lock()
	r.base = nil
	r.mu.Unlock()
	cancel()
	server.Stop()
	r.calls.Wait()
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("device plug-in registration: %w", err)
	}
	return nil
}

func removeSockets(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type() != os.ModeSocket {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// registration serves the calls of plug-ins.
type registration struct {
	pluginapi.UnimplementedRegistrationServer
	r *Registry
}

// Register connects to a plug-in.
func (s *registration) Register(ctx context.Context, req *pluginapi.RegisterRequest) (*pluginapi.Empty, error) {
	if !slices.Contains(pluginapi.SupportedVersions[:], req.Version) {
		return nil, status.Errorf(codes.InvalidArgument, "requested API version %q is not supported by kubelet. Supported version is %q", req.Version, pluginapi.SupportedVersions)
	}
	if !extended(req.ResourceName) {
		return nil, status.Errorf(codes.InvalidArgument, "the ResourceName %q is invalid: want DOMAIN/NAME outside of kubernetes.io", req.ResourceName)
	}
	if e := req.Endpoint; e == "" || e == socketName || e != filepath.Base(e) || e == ".." || e == "." {
		return nil, status.Errorf(codes.InvalidArgument, "the Endpoint %q is invalid: want the name of a socket in %s", e, s.r.cfg.Dir)
	}
	p, err := dial(ctx, req.ResourceName, filepath.Join(s.r.cfg.Dir, req.Endpoint))
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "failed to dial device plugin with socketPath %s: %v", filepath.Join(s.r.cfg.Dir, req.Endpoint), err)
	}
	if err := s.r.connect(p); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	return &pluginapi.Empty{}, nil
}

// extended reports whether a name is that of an extended resource.
func extended(name string) bool {
	return strings.Contains(name, "/") && !strings.Contains(name, "kubernetes.io/") && !strings.HasPrefix(name, "requests.") &&
		len(validation.IsQualifiedName("requests."+name)) == 0
}
