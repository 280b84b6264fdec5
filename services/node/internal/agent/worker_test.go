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

	"keelson.dev/services/node/internal/cri"
)

// A worker does not look at the runtime before it knows which pod it is for.
func TestNewsComesBeforeTheFirstLook(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 100)
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		asked <- struct{}{}
		return status.Error(codes.Unavailable, "not a runtime")
	}))
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	runtime, err := cri.Dial("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = runtime.Close() })

	ctx, cancel := context.WithCancel(context.Background())
	a := New(Config{Node: "n", Runtime: runtime})
	a.base = ctx
	t.Cleanup(func() { cancel(); a.wg.Wait(); a.probes.Close() })
	a.tell("uid", func(w *worker) {
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
