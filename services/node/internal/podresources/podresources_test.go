package podresources

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"keelson.dev/services/node/internal/device"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type devicesOf map[types.UID][]device.Allocation

func (d devicesOf) Allocations(uid types.UID) []device.Allocation { return d[uid] }

func (d devicesOf) Allocatable() map[string][]device.Device {
	return map[string][]device.Device{"example.com/gpu": {{ID: "a", NUMA: []int64{0, 1}}, {ID: "b"}, {ID: "c"}}}
}

func TestServer(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	made := func(name string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)},
			Spec: corev1.PodSpec{
				InitContainers: []corev1.Container{{Name: "init"}, {Name: "sidecar", RestartPolicy: &always}},
				Containers:     []corev1.Container{{Name: "c"}},
			},
			Status: corev1.PodStatus{Phase: phase},
		}
	}
	s := &Server{
		Socket: filepath.Join(t.TempDir(), "pod-resources", "kubelet.sock"),
		Pods: func() []*corev1.Pod {
			return []*corev1.Pod{made("z", corev1.PodRunning), made("done", corev1.PodSucceeded), made("b", corev1.PodPending)}
		},
		Devices: devicesOf{"z": {{Container: "c", Resource: "example.com/gpu", Devices: []device.Device{{ID: "a", NUMA: []int64{1}}}}}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient("unix:"+s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := podresourcesv1.NewPodResourcesListerClient(conn)
	list, err := c.List(t.Context(), &podresourcesv1.ListPodResourcesRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range list.PodResources {
		for _, c := range p.Containers {
			for _, d := range c.Devices {
				got = append(got, fmt.Sprintf("%s/%s/%s %s %v %d", p.Namespace, p.Name, c.Name, d.ResourceName, d.DeviceIds, d.Topology.Nodes[0].ID))
			}
			if len(c.Devices) == 0 {
				got = append(got, p.Namespace+"/"+p.Name+"/"+c.Name)
			}
		}
	}
	if want := "default/b/sidecar, default/b/c, default/z/sidecar, default/z/c example.com/gpu [a] 1"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
	one, err := c.Get(t.Context(), &podresourcesv1.GetPodResourcesRequest{PodName: "z", PodNamespace: "default"})
	if err != nil || one.PodResources.Name != "z" || len(one.PodResources.Containers[1].Devices) != 1 {
		t.Errorf("%v, %v", one, err)
	}
	for _, name := range []string{"done", "none"} {
		if _, err := c.Get(t.Context(), &podresourcesv1.GetPodResourcesRequest{PodName: name, PodNamespace: "default"}); status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	all, err := c.GetAllocatableResources(t.Context(), &podresourcesv1.AllocatableResourcesRequest{})
	if err != nil || len(all.Devices) != 2 || len(all.Devices[0].Topology.Nodes) != 2 || len(all.Devices[1].DeviceIds) != 2 || len(all.CpuIds)+len(all.Memory) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if info, err := os.Stat(s.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
