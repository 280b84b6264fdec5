package agent

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

// fakeRuntime is an in-memory container runtime that records the calls it gets. A held
// container ends when it is released, any other as soon as it is stopped.
type fakeRuntime struct {
	runtimev1.UnimplementedRuntimeServiceServer

	mu      sync.Mutex
	calls   []string // "hook ID", "stop ID" and "end ID", in order
	timeout map[string]int64
	holds   map[string]chan struct{}
	exec    func(req *runtimev1.ExecSyncRequest) (*runtimev1.ExecSyncResponse, error)
	changed chan struct{}
}

func newFakeRuntime(held ...string) *fakeRuntime {
	f := &fakeRuntime{timeout: map[string]int64{}, holds: map[string]chan struct{}{}, changed: make(chan struct{}, 1)}
	for _, id := range held {
		f.holds[id] = make(chan struct{})
	}
	return f
}

// startFakeRuntime serves a fakeRuntime and returns it with a client. Containers in held do
// not end before they are released.
func startFakeRuntime(t *testing.T, held ...string) (*fakeRuntime, *cri.Client) {
	t.Helper()
	f := newFakeRuntime(held...)
	return f, serveRuntime(t, f)
}

// serveRuntime serves a runtime on a Unix socket and returns a client of it.
func serveRuntime(t *testing.T, runtime runtimev1.RuntimeServiceServer) *cri.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	runtimev1.RegisterRuntimeServiceServer(srv, runtime)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	c, err := cri.Dial("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		srv.Stop()
		<-done
	})
	return c
}

func (f *fakeRuntime) record(call string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *fakeRuntime) StopContainer(ctx context.Context, req *runtimev1.StopContainerRequest) (*runtimev1.StopContainerResponse, error) {
	f.mu.Lock()
	f.timeout[req.ContainerId] = req.Timeout
	hold := f.holds[req.ContainerId]
	f.mu.Unlock()
	f.record("stop " + req.ContainerId)
	if hold != nil {
		select {
		case <-hold:
		case <-time.After(time.Duration(req.Timeout) * time.Second):
		case <-ctx.Done():
		}
	}
	f.record("end " + req.ContainerId)
	return &runtimev1.StopContainerResponse{}, ctx.Err()
}

func (f *fakeRuntime) ExecSync(_ context.Context, req *runtimev1.ExecSyncRequest) (*runtimev1.ExecSyncResponse, error) {
	f.record("hook " + req.ContainerId)
	if f.exec != nil {
		return f.exec(req)
	}
	return &runtimev1.ExecSyncResponse{}, nil
}

// seen waits until the recorded calls include all of what, and returns the calls.
func (f *fakeRuntime) seen(t *testing.T, what ...string) []string {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		f.mu.Lock()
		calls := slices.Clone(f.calls)
		f.mu.Unlock()
		missing := slices.ContainsFunc(what, func(c string) bool { return !slices.Contains(calls, c) })
		if !missing {
			return calls
		}
		select {
		case <-f.changed:
		case <-deadline:
			t.Fatalf("timed out waiting for calls %q; got %q", what, calls)
		}
	}
}

// sidecarPod returns a pod with two sidecars and a regular container, all with preStop
// hooks, and a runtime state in which all of them run.
func sidecarPod() (*corev1.Pod, *cri.Pod) {
	always := corev1.ContainerRestartPolicyAlways
	hook := &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"leave"}}}}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "first", RestartPolicy: &always, Lifecycle: hook}, {Name: "second", RestartPolicy: &always, Lifecycle: hook}},
		Containers:     []corev1.Container{{Name: "main", Lifecycle: hook}},
	}}
	state := &cri.Pod{UID: "u"}
	for _, name := range []string{"main", "second", "first"} {
		state.Containers = append(state.Containers, cri.Container{ID: name, Name: name, State: cri.StateRunning})
	}
	return p, state
}

func stopAgent(c *cri.Client) *Agent {
	return New(Config{Node: "node", Runtime: c, HostIPs: func() []string { return nil }})
}

// TestSidecarsHooksBeginAtOnce checks that the preStop hooks of all containers start as
// soon as the pod is stopped, and that a sidecar's stop signal waits for the containers
// that must end first.
func TestSidecarsHooksBeginAtOnce(t *testing.T) {
	f, c := startFakeRuntime(t, "main", "second")
	p, state := sidecarPod()
	done := make(chan struct{})
	go func() {
		defer close(done)
		stopAgent(c).killPod(context.Background(), p, state, time.Hour, minGrace)
	}()
	calls := f.seen(t, "hook main", "hook first", "hook second", "stop main")
	if slices.Contains(calls, "stop first") || slices.Contains(calls, "stop second") {
		t.Errorf("a sidecar was stopped before the regular container had ended: %q", calls)
	}
	close(f.holds["main"])
	if calls := f.seen(t, "stop second"); slices.Contains(calls, "stop first") || slices.Index(calls, "end main") > slices.Index(calls, "stop second") {
		t.Errorf("calls: %q", calls)
	}
	close(f.holds["second"])
	f.seen(t, "stop first")
	<-done
}

// TestLeastGrace checks that no container gets less than two seconds between its stop
// signal and SIGKILL: neither after a grace period of 0 or 1 s, nor a sidecar whose turn
// comes after the grace period, unless the node itself ends the pod sooner.
func TestLeastGrace(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Second} {
		f, c := startFakeRuntime(t)
		p, state := sidecarPod()
		stopAgent(c).killPod(context.Background(), p, state, grace, minGrace)
		for _, name := range []string{"main", "second", "first"} {
			f.seen(t, "hook "+name)
			if f.timeout[name] != 2 {
				t.Errorf("grace period %s: %s got %d s", grace, name, f.timeout[name])
			}
		}
	}
	f, c := startFakeRuntime(t)
	p, state := sidecarPod()
	stopAgent(c).killPod(context.Background(), p, state, time.Second, time.Second)
	for _, name := range []string{"main", "second", "first"} {
		if f.timeout[name] != 1 {
			t.Errorf("a pod that the node ends within a second: %s got %d s", name, f.timeout[name])
		}
	}
	f, c = startFakeRuntime(t, "main")
	p, state = sidecarPod()
	p.Spec.Containers[0].Lifecycle = nil
	done := make(chan struct{})
	go func() {
		defer close(done)
		stopAgent(c).killPod(context.Background(), p, state, time.Second, minGrace)
	}()
	f.seen(t, "stop second", "stop first") // although the regular container has not ended
	close(f.holds["main"])
	<-done
	if f.timeout["second"] != 2 || f.timeout["first"] != 2 {
		t.Errorf("stop timeouts: %v", f.timeout)
	}
	// The minimum also applies to a container that is stopped on its own.
	stopAgent(c).killContainer(context.Background(), p, state, &state.Containers[0], 0, minGrace, "", nil)
	if f.timeout["main"] != 2 {
		t.Errorf("a container stopped on its own got %d s", f.timeout["main"])
	}
}
