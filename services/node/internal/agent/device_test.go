package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/device"
)

// devices grants every pod the same, except those whose name it refuses.
type devices struct {
	grant  *device.Grant
	refuse string
	// hung, if not nil, keeps Admit waiting until ctx ends; it is closed when Admit waits.
	hung chan struct{}

	mu       sync.Mutex
	held     map[types.UID]bool
	released []types.UID
}

func (d *devices) Admit(ctx context.Context, p *corev1.Pod) error {
	if d.hung != nil {
		close(d.hung)
		<-ctx.Done()
		return ctx.Err()
	}
	if p.Name == d.refuse {
		return errors.New("requested number of devices unavailable for example.com/gpu. Requested: 1, Available: 0")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[p.UID] = true
	return nil
}

func (d *devices) Start(context.Context, *corev1.Pod, *corev1.Container) (*device.Grant, error) {
	return d.grant, nil
}

func (d *devices) Release(uid types.UID) { d.Retain(func(u types.UID) bool { return u != uid }) }

func (d *devices) Retain(keep func(types.UID) bool) {
	d.mu.Lock()
	held := d.held
	d.held = map[types.UID]bool{}
	d.mu.Unlock()
	for uid := range held {
		kept := keep(uid)
		d.mu.Lock()
		if kept {
			d.held[uid] = true
		} else {
			d.released = append(d.released, uid)
		}
		d.mu.Unlock()
	}
}

func (d *devices) has(uid types.UID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[uid]
}

func TestDevices(t *testing.T) {
	lib := t.TempDir()
	if err := os.WriteFile(filepath.Join(lib, "driver"), []byte("of the plug-in"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.stop()
	d := &devices{refuse: "refused", held: map[types.UID]bool{"long-gone": true}, grant: &device.Grant{
		Envs:        []*runtimev1.KeyValue{{Key: "GPU", Value: []byte("a")}, {Key: "MINE", Value: []byte("plug-in's")}},
		Mounts:      []*runtimev1.Mount{{ContainerPath: "/lib/gpu", HostPath: lib, Readonly: true}},
		Devices:     []*runtimev1.Device{{ContainerPath: "/dev/gpu0", HostPath: "/dev/null", Permissions: "rw"}},
		Annotations: map[string]string{"example.com/gpu": "a"},
	}}
	r.devices = d
	r.start()

	p := simple("p", forever)
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "MINE", Value: "the pod's"}}
	p = r.awaitReady(r.create(p))
	if got := r.exec(p, "main", "sh", "-c", "echo $GPU $MINE; cat /lib/gpu/driver; echo; test -c /dev/gpu0 && echo x > /dev/gpu0 && echo device"); got != "a the pod's\nof the plug-in\ndevice\n" {
		t.Errorf("in the container: %q", got)
	}
	refused := r.create(simple("refused", forever))
	refused = r.await(refused, "is refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if s := refused.Status; s.Reason != "UnexpectedAdmissionError" || !strings.HasPrefix(s.Message, "Pod was rejected: Allocate failed due to requested number of devices unavailable for example.com/gpu. Requested: 1, Available: 0, which is unexpected") {
		t.Errorf("%s: %s", s.Reason, s.Message)
	}
	r.until("devices of a pod that disappeared are free", 2*time.Minute, func() bool { return !d.has("long-gone") })

	r.stop()
	r.start()
	r.until("the agent has begun", 2*time.Minute, r.agent.began.Load)
	if !d.has(p.UID) {
		t.Error("a restart of the agent freed the devices of a running pod")
	}
	r.delete(p)
	r.awaitGone(p)
	if d.has(p.UID) {
		t.Error("a pod that is gone has devices")
	}
}

// A pod whose containers have not ended keeps its devices, although its object is gone.
func TestForceDeletedPodKeepsItsDevices(t *testing.T) {
	runtime, _ := unavailable(t)
	ctx, cancel := context.WithCancel(context.Background())
	d := &devices{held: map[types.UID]bool{"p": true}}
	a := New(Config{Node: "n", Runtime: runtime, Devices: d})
	a.base = ctx
	t.Cleanup(func() { cancel(); a.wg.Wait(); a.probes.Close() })
	a.onPod(client.Event[*corev1.Pod]{Type: client.Deleted, Object: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "p"}}})
	a.retainDevices()
	if !d.has("p") || slices.Contains(d.released, "p") {
		t.Error("its devices were released")
	}
}

// When the agent stops while a plug-in is asked, the pod is not refused.
func TestStopDuringAdmission(t *testing.T) {
	runtime, _ := unavailable(t)
	d := &devices{hung: make(chan struct{})}
	a := New(Config{Node: "n", Runtime: runtime, Devices: d})
	t.Cleanup(a.probes.Close)
	ctx, cancel := context.WithCancel(context.Background())
	w := newWorker(a, "p")
	done := make(chan error, 1)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "p"}}
	go func() { done <- w.decide(ctx, p) }()
	<-d.hung
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || w.refused != nil || w.admitted {
		t.Errorf("%v, refused %v, admitted %v", err, w.refused, w.admitted)
	}
	if len(a.admitted) != 0 {
		t.Error("its requests still count")
	}
}
