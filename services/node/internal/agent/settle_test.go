package agent

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/pod"
)

// slowSandboxes creates a sandbox only when release is closed.
type slowSandboxes struct {
	*fakeRuntime
	release chan struct{}
}

func (s *slowSandboxes) RunPodSandbox(ctx context.Context, _ *runtimev1.RunPodSandboxRequest) (*runtimev1.RunPodSandboxResponse, error) {
	s.record("run")
	select {
	case <-s.release:
	case <-ctx.Done():
		s.record("cut off")
		return nil, ctx.Err()
	}
	return &runtimev1.RunPodSandboxResponse{PodSandboxId: "box"}, nil
}

func (s *slowSandboxes) StopPodSandbox(_ context.Context, req *runtimev1.StopPodSandboxRequest) (*runtimev1.StopPodSandboxResponse, error) {
	s.record("stop sandbox " + req.PodSandboxId)
	return &runtimev1.StopPodSandboxResponse{}, nil
}

func (s *slowSandboxes) RemovePodSandbox(_ context.Context, req *runtimev1.RemovePodSandboxRequest) (*runtimev1.RemovePodSandboxResponse, error) {
	s.record("remove sandbox " + req.PodSandboxId)
	return &runtimev1.RemovePodSandboxResponse{}, nil
}

// TestStopWhileSandboxIsMade checks that an agent that is stopped while the runtime creates
// a sandbox lets the call finish and removes the sandbox.
func TestStopWhileSandboxIsMade(t *testing.T) {
	s := &slowSandboxes{fakeRuntime: newFakeRuntime(), release: make(chan struct{})}
	c := serveRuntime(t, s)
	dir := t.TempDir()
	a := New(Config{
		Node: "node", Runtime: c, DataDir: dir, Settings: pod.Settings{LogDir: filepath.Join(dir, "pods")},
		HostIPs: func() []string { return nil }, NetworkReady: func() bool { return true },
	})
	base, stop := context.WithCancel(context.Background())
	a.base = base
	w := newWorker(a, "u")
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.createSandbox(base, p, 0)
	}()
	s.seen(t, "run")
	stop()
	select {
	case <-done:
		t.Error("createSandbox did not wait for the runtime")
	case <-time.After(50 * time.Millisecond):
	}
	close(s.release)
	<-done
	if calls := s.seen(t, "stop sandbox box", "remove sandbox box"); slices.Contains(calls, "cut off") {
		t.Errorf("calls: %q", calls)
	}
}
