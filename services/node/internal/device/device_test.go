package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// held returns "container: device device" for each container of a pod.
func (n *node) held(uid types.UID) (out []string) {
	for _, a := range n.reg.Allocations(uid) {
		out = append(out, a.Container+": "+strings.Join(a.ids(), " "))
	}
	return out
}

func (n *node) admit(p *corev1.Pod) {
	n.t.Helper()
	if err := n.reg.Admit(n.t.Context(), p); err != nil {
		n.t.Fatalf("%s: %v", p.Name, err)
	}
}

func (n *node) refuses(p *corev1.Pod, want string) {
	n.t.Helper()
	if err := n.reg.Admit(n.t.Context(), p); err == nil || !strings.Contains(err.Error(), want) {
		n.t.Errorf("%s: %v, want %q", p.Name, err, want)
	}
	if got := n.held(p.UID); got != nil {
		n.t.Errorf("%s was refused and has %v", p.Name, got)
	}
}

func TestCapacityFollowsThePlugin(t *testing.T) {
	n := newNode(t)
	n.shows(gpu, -1, -1)
	f := n.plugin("gpu.sock", gpu, "a", "b", "-c")
	n.shows(gpu, 3, 2)
	f.list("-a", "-b", "c", "d")
	n.shows(gpu, 4, 2)
	f.server.Stop()
	n.shows(gpu, 4, 0) // stopped
	n.pass(stopGrace - time.Second)
	n.shows(gpu, 4, 0)
	n.pass(time.Second)
	n.shows(gpu, 0, 0) // gone
	n.refuses(newPod("late", gpu, 1), "no healthy devices present; cannot allocate unhealthy devices "+gpu)
	n.plugin("gpu.sock", gpu, "a")
	n.shows(gpu, 1, 1)
}

// A plug-in that registers again, before its predecessor has ended, is not affected by that
// one's end.
func TestPluginIsReplaced(t *testing.T) {
	n := newNode(t)
	old := n.plugin("old.sock", gpu, "a")
	n.shows(gpu, 1, 1)
	n.plugin("new.sock", gpu, "b", "c")
	n.shows(gpu, 2, 2)
	old.list("x", "y", "z")
	old.server.Stop()
	n.admit(newPod("p", gpu, 2))
	if got := n.held("p"); !slices.Equal(got, []string{"c: b c"}) {
		t.Errorf("%v", got)
	}
}

func TestAllocation(t *testing.T) {
	n := newNode(t)
	f := n.plugin("gpu.sock", gpu, "a", "b", "-x")
	n.shows(gpu, 3, 2)
	n.refuses(newPod("greedy", gpu, 3), "requested number of devices unavailable for "+gpu+". Requested: 3, Available: 2")
	n.refuses(newPod("greedier", gpu, 1<<40), "requested number of devices unavailable")
	n.admit(newPod("one", gpu, 1))
	n.admit(newPod("two", gpu, 1))
	n.refuses(newPod("three", gpu, 1), "Requested: 1, Available: 0")
	n.admit(newPod("other", "example.com/unknown", 1)) // the scheduler's
	n.reg.Release("one")
	n.admit(newPod("three", gpu, 1))
	if one, two, three := n.held("one"), n.held("two"), n.held("three"); one != nil || fmt.Sprint(two, three) != "[c: b] [c: a]" {
		t.Errorf("%v %v %v", one, two, three)
	}
	if got := f.called(); !slices.Equal(got, []string{"allocate a", "allocate b", "allocate a"}) {
		t.Errorf("%v", got)
	}
	n.reg.Retain(func(uid types.UID) bool { return uid == "two" })
	f.mu.Lock()
	f.failure = errPlugin
	f.mu.Unlock()
	n.refuses(newPod("four", gpu, 1), "no driver")
	f.mu.Lock()
	f.failure = nil
	f.mu.Unlock()
	n.admit(newPod("five", gpu, 1))
}

// Pods that are admitted at the same time never get the same device.
func TestAllocationsDoNotOverlap(t *testing.T) {
	n := newNode(t)
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprintf("d%02d", i))
	}
	f := n.plugin("gpu.sock", gpu, ids...)
	f.options.GetPreferredAllocationAvailable = true
	f.prefers = ids[:1] // each is to get the same
	n.shows(gpu, 20, 20)
	var all sync.WaitGroup
	errs := make([]error, 30)
	for i := range errs {
		all.Go(func() { errs[i] = n.reg.Admit(t.Context(), newPod(fmt.Sprint(i), gpu, 1)) })
	}
	all.Wait()
	failed, seen := 0, map[string]bool{}
	for i, err := range errs {
		if err != nil {
			failed++
			continue
		}
		id := n.reg.Allocations(types.UID(fmt.Sprint(i)))[0].ids()[0]
		if seen[id] {
			t.Errorf("%s was allocated twice", id)
		}
		seen[id] = true
	}
	if failed != 10 || len(seen) != 20 {
		t.Errorf("%d refused, %d devices allocated", failed, len(seen))
	}
}

func TestPreferredDevices(t *testing.T) {
	n := newNode(t)
	f := n.plugin("gpu.sock", gpu, "a", "b", "c")
	n.shows(gpu, 3, 3)
	f.mu.Lock()
	f.options.GetPreferredAllocationAvailable = true
	f.prefers = []string{"c", "c", "nonsense"}
	f.mu.Unlock()
	n.plugin("gpu.sock2", "example.com/other", "o")
	n.restartPlugin(f, "gpu.sock")
	n.admit(newPod("p", gpu, 2))
	if got := n.held("p"); !slices.Equal(got, []string{"c: a c"}) {
		t.Errorf("%v", got)
	}
	if !slices.Equal(f.available, []string{"a", "b", "c"}) {
		t.Errorf("asked for one of %v", f.available)
	}
}

// restartPlugin makes a plug-in register again, with its present options.
func (n *node) restartPlugin(f *fake, endpoint string) {
	n.t.Helper()
	f.server.Stop()
	n.serve(f, endpoint)
	if err := n.register(&pluginapi.RegisterRequest{Version: pluginapi.Version, Endpoint: endpoint, ResourceName: gpu}); err != nil {
		n.t.Fatal(err)
	}
	n.shows(gpu, int64(len(f.devices)), int64(len(f.devices)))
}

func TestInitContainersPassDevicesOn(t *testing.T) {
	n := newNode(t)
	n.plugin("gpu.sock", gpu, "a", "b", "c")
	n.shows(gpu, 3, 3)
	always := corev1.ContainerRestartPolicyAlways
	p := newPod("p", gpu, 1)
	sidecar := wanting("sidecar", gpu, 1)
	sidecar.RestartPolicy = &always
	p.Spec.InitContainers = []corev1.Container{wanting("first", gpu, 2), sidecar, wanting("second", gpu, 2)}
	n.admit(p)
	if got := n.held("p"); !slices.Equal(got, []string{"first: a b", "sidecar: a", "second: b c", "c: b"}) {
		t.Errorf("%v", got)
	}
}

func TestRestartKeepsAllocations(t *testing.T) {
	n := newNode(t)
	f := n.plugin("gpu.sock", gpu, "a", "b")
	n.shows(gpu, 2, 2)
	f.answer = func(ids []string) *pluginapi.ContainerAllocateResponse {
		return &pluginapi.ContainerAllocateResponse{Envs: map[string]string{"GPU": strings.Join(ids, ",")}}
	}
	p := newPod("p", gpu, 1)
	n.admit(p)
	n.admit(newPod("deleted", gpu, 1))
	n.restart()
	n.shows(gpu, 0, 0)
	n.admit(p) // admitted, but its status was not written
	grant, err := n.reg.Start(t.Context(), p, &p.Spec.Containers[0])
	if err != nil || len(grant.Envs) != 1 || string(grant.Envs[0].Value) != "a" {
		t.Errorf("%v, %v", grant, err)
	}
	n.refuses(newPod("new", gpu, 1), "no healthy devices present")
	n.plugin("gpu.sock", gpu, "a", "b")
	n.shows(gpu, 2, 2)
	n.refuses(newPod("new", gpu, 1), "Available: 0")
	n.reg.Retain(func(uid types.UID) bool { return uid == "p" })
	n.admit(newPod("new", gpu, 1))
	if got := n.held("new"); !slices.Equal(got, []string{"c: b"}) {
		t.Errorf("%v", got)
	}
	n.restart()
	if a, b := n.held("p"), n.held("new"); !slices.Equal(a, []string{"c: a"}) || !slices.Equal(b, []string{"c: b"}) {
		t.Errorf("%v %v", a, b)
	}
	if got := f.called(); !slices.Equal(got, []string{"allocate a", "allocate b"}) {
		t.Errorf("the plug-in was asked again: %v", got)
	}
}

// A reservation that its plug-in has not answered is not recorded.
func TestRestartForgetsReservations(t *testing.T) {
	n := newNode(t)
	f := n.plugin("gpu.sock", gpu, "a", "b")
	n.shows(gpu, 2, 2)
	n.admit(newPod("p", gpu, 1))
	f.mu.Lock()
	f.blocked = make(chan struct{})
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan error, 1)
	go func() { refused <- n.reg.Admit(ctx, newPod("slow", gpu, 1)) }()
	n.until("the plug-in is asked", func() bool { return len(f.called()) == 2 })
	n.refuses(newPod("third", gpu, 1), "Available: 0")
	if err := n.reg.save(); err != nil {
		t.Fatal(err)
	}
	saved, err := load(n.reg.cfg.Record)
	if err != nil || len(saved.Pods) != 1 || len(saved.Pods["p"]) != 1 {
		t.Errorf("%v, %v", saved, err)
	}
	cancel()
	if err := <-refused; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(f.blocked)
	n.admit(newPod("third", gpu, 1))
}

func TestUnreadableRecordIsRefused(t *testing.T) {
	name := filepath.Join(t.TempDir(), "devices.json")
	for _, text := range []string{"{", "[]", `{"version":2}`, ""} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{Record: name}); err == nil || !strings.Contains(err.Error(), "drain the node and remove "+name) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestGrant(t *testing.T) {
	n := newNode(t)
	f := n.plugin("gpu.sock", gpu, "a")
	f.options.PreStartRequired = true
	n.restartPlugin(f, "gpu.sock")
	f.answer = func([]string) *pluginapi.ContainerAllocateResponse {
		return &pluginapi.ContainerAllocateResponse{
			Envs:        map[string]string{"A": "1", "B": "2"},
			Mounts:      []*pluginapi.Mount{{ContainerPath: "/lib/gpu", HostPath: "/opt/gpu", ReadOnly: true}},
			Devices:     []*pluginapi.DeviceSpec{{ContainerPath: "/dev/gpu", HostPath: "/dev/null", Permissions: "rw"}},
			Annotations: map[string]string{"example.com/x": "y"},
			CdiDevices:  []*pluginapi.CDIDevice{{Name: "example.com/gpu=a"}},
		}
	}
	other := n.plugin("nic.sock", "example.com/nic", "n")
	n.shows("example.com/nic", 1, 1)
	other.answer = func([]string) *pluginapi.ContainerAllocateResponse {
		return &pluginapi.ContainerAllocateResponse{
			Envs: map[string]string{"A": "other", "C": "3"}, CdiDevices: []*pluginapi.CDIDevice{{Name: "example.com/gpu=a"}},
			Mounts: []*pluginapi.Mount{{ContainerPath: "/lib/gpu", HostPath: "/elsewhere"}},
		}
	}
	p := newPod("p", gpu, 1)
	p.Spec.Containers[0].Resources.Limits["example.com/nic"] = p.Spec.Containers[0].Resources.Limits[gpu]
	n.admit(p)
	g, err := n.reg.Start(t.Context(), p, &p.Spec.Containers[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%v %v %v %v %v", g.Envs, g.Mounts, g.Devices, g.CDIDevices, g.Annotations); strings.Count(got, "1") != 1 ||
		len(g.Envs) != 3 || len(g.Mounts) != 1 || !g.Mounts[0].Readonly || g.Mounts[0].HostPath != "/opt/gpu" ||
		len(g.Devices) != 1 || g.Devices[0].Permissions != "rw" || len(g.CDIDevices) != 1 || g.Annotations["example.com/x"] != "y" {
		t.Error(got)
	}
	if got := f.called(); !slices.Equal(got, []string{"allocate a", "start a"}) {
		t.Errorf("%v", got)
	}
	f.mu.Lock()
	f.failure = errPlugin
	f.mu.Unlock()
	if _, err := n.reg.Start(t.Context(), p, &p.Spec.Containers[0]); err == nil || !strings.Contains(err.Error(), "no driver") {
		t.Errorf("started without the plug-in's preparation: %v", err)
	}
	f.server.Stop()
	n.shows(gpu, 1, 0)
	if _, err := n.reg.Start(t.Context(), p, &p.Spec.Containers[0]); err == nil || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("started without the plug-in: %v", err)
	}
	if g, err := n.reg.Start(t.Context(), newPod("q", "cpu", 1), &corev1.Container{Name: "c"}); g != nil || err != nil {
		t.Errorf("a container without devices: %v, %v", g, err)
	}
}

func TestRegistrationsAreChecked(t *testing.T) {
	n := newNode(t)
	n.plugin("gpu.sock", gpu, "a")
	if err := os.WriteFile(filepath.Join(n.dir, "plugins", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, req := range map[string]*pluginapi.RegisterRequest{
		"API version":     {Version: "v1alpha", Endpoint: "gpu.sock", ResourceName: gpu},
		`"cpu"`:           {Version: pluginapi.Version, Endpoint: "gpu.sock", ResourceName: "cpu"},
		"kubernetes.io":   {Version: pluginapi.Version, Endpoint: "gpu.sock", ResourceName: "x.kubernetes.io/gpu"},
		"a b":             {Version: pluginapi.Version, Endpoint: "gpu.sock", ResourceName: "example.com/a b"},
		"../gpu.sock":     {Version: pluginapi.Version, Endpoint: "../gpu.sock", ResourceName: gpu},
		`Endpoint ""`:     {Version: pluginapi.Version, Endpoint: "", ResourceName: gpu},
		"kubelet.sock":    {Version: pluginapi.Version, Endpoint: "kubelet.sock", ResourceName: gpu},
		"no such file":    {Version: pluginapi.Version, Endpoint: "none.sock", ResourceName: gpu},
		"is not a socket": {Version: pluginapi.Version, Endpoint: "file", ResourceName: gpu},
	} {
		if err := n.register(req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", req, err, want)
		}
	}
	n.shows(gpu, 1, 1)
}

func TestListsAreBounded(t *testing.T) {
	n := newNode(t)
	f := n.plugin("gpu.sock", gpu, "a")
	n.shows(gpu, 1, 1)
	f.list("a", "")
	n.shows(gpu, 1, 0) // the stream has ended
	f = n.plugin("gpu.sock", gpu, "a")
	n.shows(gpu, 1, 1)
	f.list("a", strings.Repeat("x", maxID+1))
	n.shows(gpu, 1, 0)
}

func TestOneNodePerDirectory(t *testing.T) {
	n := newNode(t)
	second, err := New(Config{Dir: n.reg.cfg.Dir, Record: filepath.Join(t.TempDir(), "devices.json")})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another node") {
		t.Errorf("%v", err)
	}
	n.plugin("gpu.sock", gpu, "a") // the first one's socket is still there
}

func TestPlan(t *testing.T) {
	set := func(ids ...string) map[string]bool {
		out := map[string]bool{}
		for _, id := range ids {
			out[id] = true
		}
		return out
	}
	for name, tt := range map[string]struct {
		want Want
		got  string
	}{
		"none":                           {Want{}, "[] <nil>"},
		"the first":                      {Want{Need: 2, Healthy: set("c", "b", "a")}, "[a b] <nil>"},
		"what is free":                   {Want{Need: 1, Healthy: set("a", "b"), Taken: set("a")}, "[b] <nil>"},
		"of init containers first":       {Want{Need: 1, Healthy: set("a", "b"), Taken: set("b"), Reusable: set("b")}, "[b] <nil>"},
		"not of init containers if sick": {Want{Need: 1, Healthy: set("a"), Taken: set("b"), Reusable: set("b")}, "[a] <nil>"},
		"preferred":                      {Want{Need: 2, Healthy: set("a", "b", "c"), Preferred: []string{"c", "x", "c"}}, "[a c] <nil>"},
		"not preferred and taken":        {Want{Need: 1, Healthy: set("a", "b"), Taken: set("b"), Preferred: []string{"b"}}, "[a] <nil>"},
		"more preferred than needed":     {Want{Need: 1, Healthy: set("a", "b"), Preferred: []string{"b", "a"}}, "[b] <nil>"},
	} {
		ids, err := Plan(tt.want)
		if ids == nil {
			ids = []string{}
		}
		if got := fmt.Sprint(ids, " ", err); strings.ReplaceAll(got, "  ", " ") != tt.got {
			t.Errorf("%s: %s, want %s", name, got, tt.got)
		}
	}
}
