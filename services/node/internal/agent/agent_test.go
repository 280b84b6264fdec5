package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
)

// forever is a script that runs until it gets SIGTERM and then exits at once.
const forever = "trap 'exit 0' TERM; while true; do sleep 0.1; done"

func TestPodRuns(t *testing.T) {
	r := newRig(t)
	began := time.Now()
	p := r.create(simple("first", "echo hello; "+forever))
	p = r.awaitReady(p)
	t.Logf("ready after %v", time.Since(began))
	if p.Status.Phase != corev1.PodRunning || p.Status.PodIP == "" || p.Status.HostIP != "10.89.0.11" || p.Status.StartTime == nil {
		t.Errorf("status: %+v", p.Status)
	}
	if got := r.exec(p, "main", "cat", "/etc/hosts"); !strings.Contains(got, p.Status.PodIP+"\tfirst") {
		t.Errorf("/etc/hosts: %q", got)
	}
	if got := r.exec(p, "main", "cat", "/etc/resolv.conf"); !strings.Contains(got, "nameserver 10.96.0.10") || !strings.Contains(got, "default.svc.cluster.local") {
		t.Errorf("/etc/resolv.conf: %q", got)
	}
	for _, reason := range []string{"Pulled", "Created", "Started"} {
		r.until("event "+reason, time.Minute, func() bool { return r.hasEvent(p, reason) })
	}
	r.delete(p)
	r.awaitGone(p)
	r.until("nothing is left in the runtime", time.Minute, func() bool {
		s := r.state(p)
		return len(s.Containers)+len(s.Sandboxes) == 0
	})
}

// TestInitOrder checks the order in which init containers, a sidecar and the main container
// start.
func TestInitOrder(t *testing.T) {
	r := newRig(t)
	p := simple("ordered", "echo main >>/shared/order; "+forever)
	p.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	always := corev1.ContainerRestartPolicyAlways
	sidecar := box("sidecar", "sleep 0.5; echo sidecar >>/shared/order; touch /shared/up; "+forever)
	sidecar.RestartPolicy = &always
	sidecar.StartupProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/shared/up"}}},
		PeriodSeconds: 1, FailureThreshold: 60, SuccessThreshold: 1, TimeoutSeconds: 30,
	}
	p.Spec.InitContainers = []corev1.Container{
		box("init-1", "sleep 0.3; echo init-1 >>/shared/order"), sidecar, box("init-2", "echo init-2 >>/shared/order"),
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
		}
	}
	p = r.awaitReady(r.create(p))
	r.exec(p, "main", "sh", "-c", "until grep -q main /shared/order; do sleep 0.02; done") // main is ready, but may not have written its line yet
	if got := r.exec(p, "main", "cat", "/shared/order"); got != "init-1\nsidecar\ninit-2\nmain\n" {
		t.Errorf("order: %q", got)
	}
	if s := containerStatus(p, "init-1"); s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" || !s.Ready {
		t.Errorf("init-1: %+v", s)
	}
	if s := containerStatus(p, "sidecar"); s.State.Running == nil || !s.Ready || s.Started == nil || !*s.Started {
		t.Errorf("sidecar: %+v", s)
	}
}

// TestAgentRestart checks that running containers keep running under the next agent.
func TestAgentRestart(t *testing.T) {
	r := newRig(t)
	p := simple("survivor", forever)
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}},
		PeriodSeconds: 1, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 30,
	}
	p = r.awaitReady(r.create(p))
	gone := r.awaitReady(r.create(simple("deleted-meanwhile", forever)))
	before := r.state(p)
	r.stop()
	r.delete(gone, client.Grace(0))
	r.start()
	r.until("the pod that was deleted meanwhile is removed", time.Minute, func() bool {
		s := r.state(gone)
		return len(s.Containers)+len(s.Sandboxes) == 0
	})
	after := r.state(p)
	if before.Latest("main").ID != after.Latest("main").ID || !before.Latest("main").StartedAt.Equal(after.Latest("main").StartedAt) || len(after.Containers) != 1 {
		t.Errorf("before %+v, after %+v", before.Containers, after.Containers)
	}
	now := r.get(p)
	if !ready(now) || containerStatus(now, "main").RestartCount != 0 {
		t.Errorf("status: %+v", now.Status)
	}
	for _, c := range now.Status.Conditions {
		for _, old := range p.Status.Conditions {
			if c.Type == old.Type && !c.LastTransitionTime.Equal(&old.LastTransitionTime) {
				t.Errorf("%s changed at %v", c.Type, c.LastTransitionTime)
			}
		}
	}
}

// TestRuntimeRestart checks that containers keep running when containerd is killed and
// restarted.
func TestRuntimeRestart(t *testing.T) {
	r := newRig(t)
	p := r.awaitReady(r.create(simple("steady", forever)))
	before := r.state(p).Latest("main")
	r.runtime.Kill(t)
	r.runtime.Run(t)
	r.until("the runtime answers for the pod", time.Minute, func() bool {
		s, err := r.runtime.Client.Pod(context.Background(), string(p.UID))
		return err == nil && s.Latest("main") != nil && s.Latest("main").State == cri.StateRunning
	})
	second := r.awaitReady(r.create(simple("later", forever)))
	after := r.state(p).Latest("main")
	if before.ID != after.ID || !before.StartedAt.Equal(after.StartedAt) {
		t.Errorf("before %s %v, after %s %v", before.ID, before.StartedAt, after.ID, after.StartedAt)
	}
	if now := r.get(p); containerStatus(now, "main").RestartCount != 0 || !ready(now) {
		t.Errorf("status: %+v", now.Status)
	}
	_ = second
}

// TestCrash checks that a container that exits is restarted and that its history is kept.
func TestCrash(t *testing.T) {
	r := newRig(t)
	p := r.create(simple("crashing", "echo last words >/dev/termination-log; exit 3"))
	p = r.await(p, "is in back-off", func(p *corev1.Pod) bool {
		s := containerStatus(p, "main")
		return s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff"
	})
	s := containerStatus(p, "main")
	last := s.LastTerminationState.Terminated
	if s.RestartCount != 1 || last == nil || last.ExitCode != 3 || last.Reason != "Error" || last.Message != "last words\n" {
		t.Errorf("status: %+v", s)
	}
	if p.Status.Phase != corev1.PodRunning || ready(p) {
		t.Errorf("phase %s, ready %v", p.Status.Phase, ready(p))
	}
	if !strings.Contains(s.State.Waiting.Message, "back-off 10s restarting failed container=main pod=crashing_default(") {
		t.Errorf("message: %q", s.State.Waiting.Message)
	}
	p = r.await(p, "is started a third time", func(p *corev1.Pod) bool { return containerStatus(p, "main").RestartCount == 2 })
	if n := len(r.state(p).Containers); n > 3 {
		t.Errorf("%d instances are kept", n)
	}
}

func TestPhases(t *testing.T) {
	r := newRig(t)
	ok := simple("ok", "exit 0")
	ok.Spec.RestartPolicy = corev1.RestartPolicyNever
	failed := simple("failed", "exit 7")
	failed.Spec.RestartPolicy = corev1.RestartPolicyNever
	retried := simple("retried", "test -e /shared/once && exit 0; touch /shared/once; exit 1")
	retried.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	retried.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	retried.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
	late := simple("late", forever)
	deadline := int64(1)
	late.Spec.ActiveDeadlineSeconds = &deadline
	forbidden := simple("forbidden", forever)
	forbidden.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.msgmax", Value: "1"}}}
	badInit := simple("bad-init", forever)
	badInit.Spec.RestartPolicy = corev1.RestartPolicyNever
	badInit.Spec.InitContainers = []corev1.Container{box("init", "exit 1")}
	helped := simple("helped", "sleep 0.5")
	helped.Spec.RestartPolicy = corev1.RestartPolicyNever
	always := corev1.ContainerRestartPolicyAlways
	sidecar := box("sidecar", forever)
	sidecar.RestartPolicy = &always
	helped.Spec.InitContainers = []corev1.Container{sidecar}
	for _, c := range []struct {
		pod    *corev1.Pod
		phase  corev1.PodPhase
		reason string
		code   int32
	}{
		{ok, corev1.PodSucceeded, "", 0},
		{failed, corev1.PodFailed, "", 7},
		{retried, corev1.PodSucceeded, "", 0},
		{late, corev1.PodFailed, "DeadlineExceeded", -1},
		{forbidden, corev1.PodFailed, "SysctlForbidden", -1},
		{badInit, corev1.PodFailed, "", -1},
		{helped, corev1.PodSucceeded, "", 0},
	} {
		p := r.create(c.pod)
		p = r.await(p, "is "+string(c.phase), func(p *corev1.Pod) bool { return p.Status.Phase == c.phase })
		if p.Status.Reason != c.reason {
			t.Errorf("%s: reason %q, want %q", p.Name, p.Status.Reason, c.reason)
		}
		if s := containerStatus(p, "main"); c.code >= 0 && (s.State.Terminated == nil || s.State.Terminated.ExitCode != c.code) {
			t.Errorf("%s: %+v", p.Name, s)
		}
		if ready(p) {
			t.Errorf("%s is ready", p.Name)
		}
		r.until(p.Name+" has nothing running", time.Minute, func() bool {
			s := r.state(p)
			return len(s.Running()) == 0 && (s.Sandbox() == nil || !s.Sandbox().Ready)
		})
	}
}

// TestStraySandbox checks that a sandbox of a pod that does not exist in the API is
// removed.
func TestStraySandbox(t *testing.T) {
	r := newRig(t)
	config := pod.SandboxConfig(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "stray", Namespace: "default", UID: "stray-uid"}, Spec: corev1.PodSpec{HostNetwork: true}},
		pod.Settings{LogDir: t.TempDir()}, 0, "")
	id, err := r.runtime.Client.RunSandbox(context.Background(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	r.until("the sandbox is gone", time.Minute, func() bool {
		_, err := r.runtime.Client.SandboxStatus(context.Background(), id, false)
		return cri.NotFound(err)
	})
}

// TestLogFiles checks that logs are where collectors look for them, that the links point to
// them, and that both are removed with the pod, even if it is deleted while the agent is
// down.
func TestLogFiles(t *testing.T) {
	r := newRig(t)
	logs := filepath.Join(r.dir, "var", "log")
	read := func(p *corev1.Pod) (file, link string) {
		file = filepath.Join(logs, "pods", "default_"+p.Name+"_"+string(p.UID), "main", "0.log")
		id := containerStatus(r.get(p), "main").ContainerID
		return file, filepath.Join(logs, "containers", p.Name+"_default_main-"+strings.TrimPrefix(id, "containerd://")+".log")
	}
	p := r.awaitReady(r.create(simple("speaker", "echo a line; "+forever)))
	meanwhile := r.awaitReady(r.create(simple("meanwhile", "echo a line; "+forever)))
	file, link := read(p)
	other, otherLink := read(meanwhile)
	for _, name := range []string{file, link, other, otherLink} {
		r.until(name+" has the line", time.Minute, func() bool {
			text, err := os.ReadFile(name)
			return err == nil && strings.HasSuffix(string(text), " stdout F a line\n")
		})
	}
	r.stop()
	// A log directory in the ledger of an earlier agent: the next one finds and removes it.
	old := filepath.Join(r.dir, "log", "default_old_old-uid", "main")
	if err := errors.Join(os.MkdirAll(old, 0o755), os.WriteFile(filepath.Join(old, "0.log"), nil, 0o600), os.Remove(link)); err != nil {
		t.Fatal(err)
	}
	r.delete(meanwhile, client.Grace(0))
	r.start()
	gone := func(names ...string) {
		t.Helper()
		for _, name := range names {
			r.until(name+" is gone", time.Minute, func() bool { _, err := os.Lstat(name); return err != nil })
		}
	}
	gone(filepath.Dir(filepath.Dir(other)), otherLink, filepath.Dir(old))
	r.until("the link is there again", time.Minute, func() bool { _, err := os.Stat(link); return err == nil })
	r.delete(p)
	r.awaitGone(p)
	gone(filepath.Dir(filepath.Dir(file)), link)
	r.until("the ledger is empty", time.Minute, func() bool {
		left, err := os.ReadDir(filepath.Join(r.dir, "log"))
		return err == nil && len(left) == 0
	})
}

// TestTerminationMessageHostile checks that a FIFO, a device or a symbolic link in place of
// the termination message is not read and does not block.
func TestTerminationMessageHostile(t *testing.T) {
	dir := t.TempDir()
	secret, fifo, link, file := filepath.Join(dir, "secret"), filepath.Join(dir, "fifo"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.WriteFile(file, []byte("words"), 0o600), unix.Mkfifo(fifo, 0o600), os.Symlink(secret, link)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{file: "words", fifo: "", link: "", "/dev/zero": "", dir: "", filepath.Join(dir, "absent"): ""} {
		got := make(chan string, 1)
		go func() { got <- terminationMessage(&cri.Container{MessageHostPath: name}) }()
		select {
		case text := <-got:
			if text != want {
				t.Errorf("%s: %q", name, text)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: reading the termination message blocks", name)
		}
	}
}
