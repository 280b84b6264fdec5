package agent

import (
	"context"
	"testing"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

// dyingRuntime loses its sandbox at the moment when the container's status is read.
type dyingRuntime struct {
	*fakeRuntime
	lost bool
}

func (d *dyingRuntime) ListContainers(context.Context, *runtimev1.ListContainersRequest) (*runtimev1.ListContainersResponse, error) {
	return &runtimev1.ListContainersResponse{Containers: []*runtimev1.Container{{Id: "a-0", PodSandboxId: "box"}}}, nil
}

func (d *dyingRuntime) ContainerStatus(context.Context, *runtimev1.ContainerStatusRequest) (*runtimev1.ContainerStatusResponse, error) {
	d.lost = true
	return &runtimev1.ContainerStatusResponse{Status: &runtimev1.ContainerStatus{Id: "a-0", State: runtimev1.ContainerState_CONTAINER_EXITED, ExitCode: 137}}, nil
}

func (d *dyingRuntime) state() runtimev1.PodSandboxState {
	if d.lost {
		return runtimev1.PodSandboxState_SANDBOX_NOTREADY
	}
	return runtimev1.PodSandboxState_SANDBOX_READY
}

func (d *dyingRuntime) ListPodSandbox(context.Context, *runtimev1.ListPodSandboxRequest) (*runtimev1.ListPodSandboxResponse, error) {
	return &runtimev1.ListPodSandboxResponse{Items: []*runtimev1.PodSandbox{{Id: "box", State: d.state(), Metadata: &runtimev1.PodSandboxMetadata{}}}}, nil
}

func (d *dyingRuntime) PodSandboxStatus(context.Context, *runtimev1.PodSandboxStatusRequest) (*runtimev1.PodSandboxStatusResponse, error) {
	return &runtimev1.PodSandboxStatusResponse{Status: &runtimev1.PodSandboxStatus{Id: "box", State: d.state()}}, nil
}

// TestSandboxLostWithContainer checks that a container that ended with its sandbox is never
// reported in a ready sandbox, and is not restarted in it.
func TestSandboxLostWithContainer(t *testing.T) {
	d := &dyingRuntime{fakeRuntime: newFakeRuntime()}
	c := serveRuntime(t, d)
	state, err := c.Pod(context.Background(), "u")
	if err != nil {
		t.Fatal(err)
	}
	if state.Containers[0].State != cri.StateExited || state.Sandbox().Ready {
		t.Errorf("state: %+v", state)
	}
	w := newWorker(stopAgent(c), "u")
	if w.usable(context.Background(), "box") {
		t.Error("usable reports true for a lost sandbox")
	}
	d.lost = false
	if !w.usable(context.Background(), "box") {
		t.Error("usable reports false for a ready sandbox")
	}
}
