package agent

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/cri"
)

// unavailable returns a runtime that answers every call with Unavailable. asked receives a
// value for each call.
func unavailable(t *testing.T) (runtime *cri.Client, asked chan struct{}) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked = make(chan struct{}, 100)
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		return status.Error(codes.Unavailable, "not a runtime")
	}))
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	if runtime, err = cri.Dial("unix://" + socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = runtime.Close() })
	return runtime, asked
}

// TestDeletedPodsTakeNothing checks that a pod's resources are free as soon as the pod no
// longer exists in the API, although its containers may still be ending: by then the
// scheduler may have given them to another pod.
func TestDeletedPodsTakeNothing(t *testing.T) {
	runtime, _ := unavailable(t)
	ctx, cancel := context.WithCancel(context.Background())
	a := New(Config{Node: "n", Runtime: runtime, Self: func() *corev1.Node { return &corev1.Node{} }})
	a.base = ctx
	t.Cleanup(func() { cancel(); a.wg.Wait(); a.probes.Close() })
	withPort := func(uid types.UID) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: string(uid), UID: uid},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{HostPort: 25353, Protocol: corev1.ProtocolUDP}}}}},
		}
	}
	first, second := withPort("first"), withPort("second")
	if r, err := a.admit(ctx, first); r != nil || err != nil {
		t.Fatalf("the first pod is refused: %+v", r)
	}
	if r, _ := a.admit(ctx, second); r == nil || r.Reason != "NodePorts" {
		t.Fatalf("the second pod, while the first exists: %+v", r)
	}
	a.onPod(client.Event[*corev1.Pod]{Type: client.Deleted, Object: first})
	if r, _ := a.admit(ctx, second); r != nil {
		t.Errorf("the second pod, after the first was deleted: %+v", r)
	}
}

// TestRunningHostPorts checks that only pods with a ready sandbox and an address have host
// ports when the agent starts.
func TestRunningHostPorts(t *testing.T) {
	var pods []*corev1.Pod
	for uid, ip := range map[types.UID]string{"running": "10.244.1.2", "stopped": "10.244.1.3", "lost": "10.244.1.4", "new": "", "failed": "10.244.1.5"} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Status: corev1.PodStatus{PodIP: ip}}
		p.Spec.Containers = []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{HostPort: 8080, ContainerPort: 80, Protocol: corev1.ProtocolTCP}}}}
		pods = append(pods, p)
		if uid == "failed" {
			p.Status.Phase = corev1.PodFailed
		}
	}
	got := runningHostPorts(pods, map[string]cri.Seen{
		"1": {PodUID: "running", Sandbox: true}, "2": {PodUID: "stopped", Sandbox: true, State: 1}, "3": {PodUID: "lost", State: 1},
		"4": {PodUID: "new", Sandbox: true}, "5": {PodUID: "failed", Sandbox: true},
	})
	if len(got) != 1 || len(got["running"]) != 1 || got["running"][0].Target.String() != "10.244.1.2:80" {
		t.Errorf("host ports: %v", got)
	}
}

// TestUpdateComesBeforeTheFirstSync checks that a worker does not ask the runtime before it
// knows its pod.
func TestUpdateComesBeforeTheFirstSync(t *testing.T) {
	runtime, asked := unavailable(t)
	ctx, cancel := context.WithCancel(context.Background())
	a := New(Config{Node: "n", Runtime: runtime})
	a.base = ctx
	t.Cleanup(func() { cancel(); a.wg.Wait(); a.probes.Close() })
	a.deliver("uid", func(w *worker) {
		select {
		case <-asked:
			t.Error("the runtime was asked about a pod that the worker does not know")
		case <-time.After(200 * time.Millisecond):
		}
		w.update(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: types.UID("uid")}}, nil, "")
	})
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Error("the runtime was never asked about the pod")
	}
}
