package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/uuid"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/cni"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/runtimetest"
)

// rig is an agent with a real containerd and an in-memory API server.
type rig struct {
	t       *testing.T
	runtime *runtimetest.Runtime
	client  *client.Client
	server  *clienttest.Server
	node    string
	dir     string
	agent   *Agent
	stop    func()
	events  *event.Recorder
	admit   func(*corev1.Pod) *pod.Refusal
	static  Source
	// allocatable is what the node reports.
	allocatable corev1.ResourceList
	fence       Fence
	devices     Devices
	policies    Policies
}

var rigs atomic.Int32

// newRig creates a node of its own for the test and removes it at the end.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, runtime: runtimetest.Start(t)}
	r.server, r.client = clienttest.StartServer(t)
	n := rigs.Add(1)
	r.node = fmt.Sprintf("node-%d", n)
	r.dir = filepath.Join(r.runtime.Dir, r.node)
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := cni.Configure(cni.Config{Dir: r.runtime.CNIDir, DataDir: filepath.Join(r.runtime.Dir, "network"), PodCIDR: netip.MustParsePrefix("10.244.1.0/24")}); err != nil {
		t.Fatal(err)
	}
	r.until("the runtime has a network", time.Minute, func() bool {
		resp, err := r.runtime.Client.Status(context.Background(), 10*time.Second)
		if err != nil {
			return false
		}
		for _, c := range resp.Status.Conditions {
			if c.Type == "NetworkReady" {
				return c.Status
			}
		}
		return false
	})
	r.start()
	t.Cleanup(func() {
		r.deleteAll()
		r.stop()
	})
	return r
}

// start starts an agent. It can be called again after stop.
func (r *rig) start() {
	r.t.Helper()
	cgroups, err := cgroup.Detect(r.runtime.CgroupRoot)
	if err != nil {
		r.t.Fatal(err)
	}
	r.events = event.NewRecorder(event.API{Client: r.client}, "kubelet", r.node)
	r.agent = New(Config{
		Node: r.node, Client: r.client, Runtime: r.runtime.Client, DataDir: r.dir,
		Settings: pod.Settings{
			LogDir: filepath.Join(r.dir, "var", "log", "pods"), MemoryCapacity: 8 << 30, Unified: cgroups.Unified(),
			Resolver: pod.Resolver{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local"},
		},
		ContainerLogDir: filepath.Join(r.dir, "var", "log", "containers"),
		Cgroups:         cgroups, Events: r.events,
		HostIPs: func() []string { return []string{"10.89.0.11"} },
		Allocatable: func() corev1.ResourceList {
			return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("8Gi")}
		},
		Services:     func() []*corev1.Service { return nil },
		NetworkReady: func() bool { return true }, Features: r.features, Static: r.static,
		Self: func() *corev1.Node {
			return &corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: r.node, UID: types.UID("uid-" + r.node)},
				Status:     corev1.NodeStatus{Allocatable: r.allocatable},
			}
		},
		Admit: r.admit, Fence: r.fence, Devices: r.devices, Policies: r.policies,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	agent, events := r.agent, r.events
	go func() { done <- agent.Run(ctx) }()
	go func() { done <- events.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				r.t.Errorf("agent: %v", err)
			}
		}
	}
}

// features returns what a handler of the runtime supports.
func (r *rig) features(handler string) corev1.NodeRuntimeHandlerFeatures {
	resp, err := r.runtime.Client.Status(context.Background(), time.Minute)
	if err != nil {
		r.t.Error(err)
	}
	for _, h := range resp.GetRuntimeHandlers() {
		if f := h.GetFeatures(); h.GetName() == handler && f != nil {
			return corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &f.RecursiveReadOnlyMounts, UserNamespaces: &f.UserNamespaces}
		}
	}
	return corev1.NodeRuntimeHandlerFeatures{}
}

// deleteAll deletes all pods and waits until nothing is left of them.
func (r *rig) deleteAll() {
	ctx := context.Background()
	pods := client.For[*corev1.Pod](r.client)
	list, _, err := pods.List(ctx, client.ListOptions{})
	if err != nil {
		r.t.Errorf("list pods: %v", err)
		return
	}
	for _, p := range list {
		_ = pods.Delete(ctx, p.Namespace, p.Name, client.Grace(0))
	}
	r.until("all pods are gone", 2*time.Minute, func() bool {
		for _, p := range list {
			state, err := r.runtime.Client.Pod(ctx, string(p.UID))
			if err != nil || len(state.Containers)+len(state.Sandboxes) > 0 {
				return false
			}
			if _, err := os.Stat(filepath.Join(r.dir, "pods", string(p.UID))); err == nil {
				return false
			}
		}
		return true
	})
}

// until polls until a condition holds.
func (r *rig) until(what string, patience time.Duration, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("timed out waiting until %s\n%s", what, r.describe())
		}
		<-time.After(20 * time.Millisecond)
	}
}

// describe returns the pods' statuses and events for a failure message.
func (r *rig) describe() string {
	var b strings.Builder
	ctx := context.Background()
	pods, _, _ := client.For[*corev1.Pod](r.client).List(ctx, client.ListOptions{})
	for _, p := range pods {
		fmt.Fprintf(&b, "pod %s: %s %s %s\n", p.Name, p.Status.Phase, p.Status.Reason, p.Status.Message)
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			fmt.Fprintf(&b, "  %s ready=%v restarts=%d %+v last %+v\n", c.Name, c.Ready, c.RestartCount, c.State, c.LastTerminationState)
		}
	}
	events, _, _ := client.For[*corev1.Event](r.client).List(ctx, client.ListOptions{})
	for _, e := range events {
		fmt.Fprintf(&b, "event %s %s x%d: %s\n", e.InvolvedObject.Name, e.Reason, e.Count, e.Message)
	}
	return b.String()
}

// create creates a pod that is bound to the rig's node.
func (r *rig) create(p *corev1.Pod) *corev1.Pod {
	r.t.Helper()
	p.Spec.NodeName = r.node
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	p.UID = uuid.NewUUID()
	out, err := client.For[*corev1.Pod](r.client).Create(context.Background(), p)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) get(p *corev1.Pod) *corev1.Pod {
	r.t.Helper()
	out, err := client.For[*corev1.Pod](r.client).Get(context.Background(), p.Namespace, p.Name)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// await waits until ok returns true for a pod, and returns the pod.
func (r *rig) await(p *corev1.Pod, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	r.t.Helper()
	var now *corev1.Pod
	r.until(p.Name+" "+what, 2*time.Minute, func() bool {
		now = r.get(p)
		return ok(now)
	})
	return now
}

func (r *rig) awaitReady(p *corev1.Pod) *corev1.Pod {
	r.t.Helper()
	return r.await(p, "is ready", ready)
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// awaitGone waits until the pod no longer exists in the API.
func (r *rig) awaitGone(p *corev1.Pod) {
	r.t.Helper()
	r.until(p.Name+" is gone from the API", 2*time.Minute, func() bool {
		now, err := client.For[*corev1.Pod](r.client).Get(context.Background(), p.Namespace, p.Name)
		return err != nil || now.UID != p.UID
	})
}

func (r *rig) delete(p *corev1.Pod, options ...client.DeleteOption) {
	r.t.Helper()
	if err := client.For[*corev1.Pod](r.client).Delete(context.Background(), p.Namespace, p.Name, options...); err != nil {
		r.t.Fatal(err)
	}
}

// state returns what the runtime knows about a pod.
func (r *rig) state(p *corev1.Pod) *cri.Pod {
	r.t.Helper()
	s, err := r.runtime.Client.Pod(context.Background(), string(p.UID))
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// exec runs a command in a running container and returns its output.
func (r *rig) exec(p *corev1.Pod, container string, command ...string) string {
	r.t.Helper()
	c := r.state(p).Latest(container)
	if c == nil {
		r.t.Fatalf("%s: no container %s", p.Name, container)
	}
	stdout, stderr, code, err := r.runtime.Client.ExecSync(context.Background(), c.ID, command, time.Minute)
	if err != nil || code != 0 {
		r.t.Fatalf("%s: exec %q: code %d, %v: %s%s", p.Name, command, code, err, stdout, stderr)
	}
	return string(stdout)
}

// awaitFile waits until a container has created a file.
func (r *rig) awaitFile(p *corev1.Pod, container, name string) {
	r.t.Helper()
	r.exec(p, container, "sh", "-c", "until test -e "+name+"; do sleep 0.02; done")
}

// awaitHostFile waits until a file of the host exists.
func (r *rig) awaitHostFile(name string) {
	r.t.Helper()
	r.until(name+" exists", 2*time.Minute, func() bool { _, err := os.Stat(name); return err == nil })
}

// hasEvent reports whether a pod has an event with this reason.
func (r *rig) hasEvent(p *corev1.Pod, reason string) bool {
	events, _, err := client.For[*corev1.Event](r.client).List(context.Background(), client.ListOptions{Namespace: p.Namespace})
	if err != nil {
		return false
	}
	for _, e := range events {
		if e.InvolvedObject.UID == p.UID && e.Reason == reason {
			return true
		}
	}
	return false
}

// simple is a pod with one container that runs a shell script.
func simple(name, script string) *corev1.Pod {
	grace := int64(2)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSClusterFirst,
			Containers: []corev1.Container{box("main", script)},
		},
	}
}

func box(name, script string) corev1.Container {
	return corev1.Container{
		Name: name, Image: runtimetest.Image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"/bin/sh", "-c", script},
		TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
	}
}

func containerStatus(p *corev1.Pod, name string) corev1.ContainerStatus {
	if s := pod.Status(p, name); s != nil {
		return *s
	}
	return corev1.ContainerStatus{}
}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: "default"}
}

func portNumber(n int) intstr.IntOrString  { return intstr.FromInt32(int32(n)) }
func portName(s string) intstr.IntOrString { return intstr.FromString(s) }

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func (r *rig) createObject(obj client.Object) {
	r.t.Helper()
	results, err := r.client.Commit(context.Background(), client.CreateWrite(obj))
	if err == nil {
		err = results[0].Err
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) updateObject(obj client.Object) {
	r.t.Helper()
	results, err := r.client.Commit(context.Background(), client.UpdateWrite(obj))
	if err == nil {
		err = results[0].Err
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// update changes a pod, retrying on conflicts: the agent may write the status at any time.
func (r *rig) update(p *corev1.Pod, change func(*corev1.Pod)) {
	r.t.Helper()
	r.until(p.Name+" is changed", time.Minute, func() bool {
		now := r.get(p)
		change(now)
		_, err := client.For[*corev1.Pod](r.client).Update(context.Background(), now)
		if err != nil && !apierrors.IsConflict(err) {
			r.t.Fatal(err)
		}
		return err == nil
	})
}
