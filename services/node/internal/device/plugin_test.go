package device

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const gpu = "example.com/gpu"

// node is a Registry that runs, with a clock of its own.
type node struct {
	t   *testing.T
	dir string
	reg *Registry

	mu   sync.Mutex
	now  time.Time
	stop func()
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), now: time.Unix(1e9, 0)}
	n.start()
	t.Cleanup(func() { n.stop() })
	return n
}

// start starts a Registry, as after a restart of the agent.
func (n *node) start() {
	n.t.Helper()
	var err error
	n.reg, err = New(Config{Dir: filepath.Join(n.dir, "plugins"), Record: filepath.Join(n.dir, "devices.json"), Now: func() time.Time {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.now
	}})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	reg := n.reg
	go func() { done <- reg.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("run: %v", err)
		}
	})
	n.until("registrations are served", func() bool {
		reg.mu.Lock()
		defer reg.mu.Unlock()
		return reg.base != nil
	})
}

func (n *node) restart() { n.stop(); n.start() }

func (n *node) pass(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = n.now.Add(d)
}

func (n *node) until(what string, ok func() bool) {
	n.t.Helper()
	deadline := time.After(time.Minute)
	for tick := time.NewTicker(time.Millisecond); !ok(); {
		select {
		case <-tick.C:
		case <-deadline:
			n.t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// shows waits until a resource has a capacity and an allocatable quantity; -1 is none.
func (n *node) shows(name string, capacity, allocatable int64) {
	n.t.Helper()
	value := func(list corev1.ResourceList) int64 {
		q, ok := list[corev1.ResourceName(name)]
		if !ok {
			return -1
		}
		return q.Value()
	}
	var c, a int64
	defer func() {
		if n.t.Failed() {
			n.t.Logf("capacity %d, allocatable %d, want %d and %d", c, a, capacity, allocatable)
		}
	}()
	n.until("the resource's quantities are reported", func() bool {
		have, some := n.reg.Capacity()
		c, a = value(have), value(some)
		return c == capacity && a == allocatable
	})
}

// fake is a device plug-in.
type fake struct {
	pluginapi.UnimplementedDevicePluginServer
	options *pluginapi.DevicePluginOptions
	server  *grpc.Server

	mu        sync.Mutex
	devices   []*pluginapi.Device
	changed   chan struct{}
	calls     []string
	prefers   []string
	failure   error
	answer    func(ids []string) *pluginapi.ContainerAllocateResponse
	available []string
	blocked   chan struct{}
}

// plugin starts a plug-in with the given healthy devices, and registers it.
func (n *node) plugin(endpoint, name string, ids ...string) *fake {
	n.t.Helper()
	f := &fake{options: &pluginapi.DevicePluginOptions{}, changed: make(chan struct{})}
	f.list(ids...)
	n.serve(f, endpoint)
	if err := n.register(&pluginapi.RegisterRequest{Version: pluginapi.Version, Endpoint: endpoint, ResourceName: name}); err != nil {
		n.t.Fatal(err)
	}
	return f
}

func (n *node) serve(f *fake, endpoint string) {
	n.t.Helper()
	path := filepath.Join(n.dir, "plugins", endpoint)
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		n.t.Fatal(err)
	}
	f.server = grpc.NewServer()
	pluginapi.RegisterDevicePluginServer(f.server, f)
	go func() { _ = f.server.Serve(l) }()
	n.t.Cleanup(f.server.Stop)
}

func (n *node) register(req *pluginapi.RegisterRequest) error {
	n.t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(n.dir, "plugins", socketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	_, err = pluginapi.NewRegistrationClient(conn).Register(ctx, req)
	return err
}

// list sets the devices; those whose ID begins with "-" are unhealthy.
func (f *fake) list(ids ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.devices = nil
	for _, id := range ids {
		health := pluginapi.Healthy
		if len(id) > 0 && id[0] == '-' {
			id, health = id[1:], pluginapi.Unhealthy
		}
		f.devices = append(f.devices, &pluginapi.Device{ID: id, Health: health, Topology: &pluginapi.TopologyInfo{Nodes: []*pluginapi.NUMANode{{ID: 1}}}})
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fake) GetDevicePluginOptions(context.Context, *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return f.options, nil
}

func (f *fake) ListAndWatch(_ *pluginapi.Empty, stream grpc.ServerStreamingServer[pluginapi.ListAndWatchResponse]) error {
	for {
		f.mu.Lock()
		devices, changed := f.devices, f.changed
		f.mu.Unlock()
		if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: devices}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func (f *fake) GetPreferredAllocation(_ context.Context, req *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.available = req.ContainerRequests[0].AvailableDeviceIDs
	return &pluginapi.PreferredAllocationResponse{ContainerResponses: []*pluginapi.ContainerPreferredAllocationResponse{{DeviceIDs: f.prefers}}}, nil
}

func (f *fake) Allocate(ctx context.Context, req *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	ids := req.ContainerRequests[0].DevicesIds
	f.mu.Lock()
	for _, id := range ids {
		f.calls = append(f.calls, "allocate "+id)
	}
	answer, failure, blocked := f.answer, f.failure, f.blocked
	f.mu.Unlock()
	if blocked != nil {
		select {
		case <-blocked:
		case <-ctx.Done():
		}
	}
	if failure != nil {
		return nil, failure
	}
	resp := &pluginapi.ContainerAllocateResponse{}
	if answer != nil {
		resp = answer(ids)
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{resp}}, nil
}

func (f *fake) PreStartContainer(_ context.Context, req *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range req.DevicesIds {
		f.calls = append(f.calls, "start "+id)
	}
	return &pluginapi.PreStartContainerResponse{}, f.failure
}

// newPod returns a pod whose container c wants n devices.
func newPod(uid, name string, n int64) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: uid, Namespace: "default", UID: types.UID(uid)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{wanting("c", name, n)}},
	}
}

func wanting(container, name string, n int64) corev1.Container {
	return corev1.Container{Name: container, Resources: corev1.ResourceRequirements{
		Limits: corev1.ResourceList{corev1.ResourceName(name): *resource.NewQuantity(n, resource.DecimalSI)},
	}}
}

var errPlugin = status.Error(codes.Internal, "no driver")
