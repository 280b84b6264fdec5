package agent

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/proto/client"

	"keelson.dev/services/internal/pacetest"
)

// shared mounts a directory of the host, which outlives the pod, into every container of
// the pod, and returns its path.
func shared(t *testing.T, p *corev1.Pod) string {
	dir := t.TempDir()
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "shared", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}})
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: "shared", MountPath: "/shared"})
		}
	}
	return dir
}

// TestStopOrder checks that preStop hooks run before SIGTERM, and that sidecars stop after
// the other containers, the last one first.
func TestStopOrder(t *testing.T) {
	r := newRig(t)
	grace := int64(20)
	last := func(name string) string {
		return "trap 'sleep 0.2; echo " + name + " >>/shared/order; exit 0' TERM; touch /tmp/up; while true; do sleep 0.05; done"
	}
	p := simple("stopping", last("main"))
	p.Spec.TerminationGracePeriodSeconds = &grace
	p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{
		PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo post >>/shared/order"}}},
		PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "sleep 0.3; echo pre >>/shared/order"}}},
	}
	always := corev1.ContainerRestartPolicyAlways
	for _, name := range []string{"first", "second"} {
		c := box(name, last(name))
		c.RestartPolicy = &always
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	dir := shared(t, p)
	p = r.awaitReady(r.create(p))
	for _, name := range []string{"main", "first", "second"} { // before that, the container's PID 1 has no handler and ignores SIGTERM
		r.awaitFile(p, name, "/tmp/up")
	}
	r.delete(p)
	r.awaitGone(p)
	if got := readFile(t, dir+"/order"); got != "post\npre\nmain\nsecond\nfirst\n" {
		t.Errorf("order: %q", got)
	}
	r.until("event Killing", time.Minute, func() bool { return r.hasEvent(p, "Killing") })
}

// TestStubborn checks that a container that ignores SIGTERM gets its grace period and no
// more, and that a second delete can shorten it.
func TestStubborn(t *testing.T) {
	r := newRig(t)
	stubborn := "trap '' TERM; while true; do sleep 0.1; done"
	short := simple("short", stubborn)
	long := simple("long", stubborn)
	hour := int64(3600)
	long.Spec.TerminationGracePeriodSeconds = &hour
	short, long = r.create(short), r.create(long)
	short, long = r.awaitReady(short), r.awaitReady(long)
	pace := pacetest.Start(t)
	began := time.Now()
	r.delete(short)
	r.awaitGone(short)
	if took, given := time.Since(began), pace.Since(began); took < 1500*time.Millisecond || given > 15*time.Second {
		t.Errorf("a grace period of 2 s took %v", took)
	}
	r.delete(long)
	r.await(long, "is ending", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	r.until("it still runs", time.Minute, func() bool { return len(r.state(long).Running()) == 1 })
	began = time.Now()
	r.delete(long, client.Grace(1))
	r.awaitGone(long)
	if took := pace.Since(began); took > 15*time.Second {
		t.Errorf("the shortened grace period took %v", took)
	}
}

// TestForceDelete checks that the containers of a force-deleted pod are removed, and that its own
// grace period does not delay that.
func TestForceDelete(t *testing.T) {
	r := newRig(t)
	p := simple("forced", "trap '' TERM; while true; do sleep 0.1; done")
	hour := int64(3600)
	p.Spec.TerminationGracePeriodSeconds = &hour
	p = r.awaitReady(r.create(p))
	r.delete(p, client.Grace(0))
	r.awaitGone(p)
	r.until("its containers are gone", time.Minute, func() bool { return len(r.state(p).Containers) == 0 })
}

// TestFinalStatus checks that the final status is written before the pod's object is
// removed.
func TestFinalStatus(t *testing.T) {
	r := newRig(t)
	p := simple("leaving", "trap 'exit 5' TERM; touch /tmp/up; while true; do sleep 0.05; done")
	p.Finalizers = []string{"example.com/hold"}
	p = r.awaitReady(r.create(p))
	r.awaitFile(p, "main", "/tmp/up") // before that, the signal is ignored
	r.delete(p)
	p = r.await(p, "has ended", func(p *corev1.Pod) bool { return containerStatus(p, "main").State.Terminated != nil })
	if s := containerStatus(p, "main").State.Terminated; s.ExitCode != 5 {
		t.Errorf("terminated: %+v", s)
	}
	p = r.await(p, "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	r.update(p, func(p *corev1.Pod) { p.Finalizers = nil })
	r.awaitGone(p)
}

// TestPostStartFails checks that a container whose postStart hook fails is stopped and
// restarted.
func TestPostStartFails(t *testing.T) {
	r := newRig(t)
	p := simple("hooked", forever)
	p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo because; exit 1"}}}}
	p = r.create(p)
	r.until("event FailedPostStartHook", time.Minute, func() bool { return r.hasEvent(p, "FailedPostStartHook") })
	p = r.await(p, "is restarted", func(p *corev1.Pod) bool { return containerStatus(p, "main").RestartCount >= 1 })
	if ready(p) {
		t.Error("the pod is ready")
	}
}

func TestProbes(t *testing.T) {
	r := newRig(t)
	p := simple("probed", "mkdir -p /tmp/www; echo ok >/tmp/www/healthz; touch /tmp/alive; httpd -p 8080 -h /tmp/www; "+forever)
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}
	quick := func(h corev1.ProbeHandler) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: 1, SuccessThreshold: 1, TimeoutSeconds: 30}
	}
	p.Spec.Containers[0].StartupProbe = quick(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: portNumber(8080)}})
	p.Spec.Containers[0].StartupProbe.FailureThreshold = 60
	p.Spec.Containers[0].ReadinessProbe = quick(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: portName("web")}})
	p.Spec.Containers[0].LivenessProbe = quick(corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/tmp/alive"}}})
	zero := int64(0)
	p.Spec.Containers[0].LivenessProbe.TerminationGracePeriodSeconds = &zero
	p = r.awaitReady(r.create(p))

	r.exec(p, "main", "rm", "/tmp/www/healthz")
	p = r.await(p, "is not ready", func(p *corev1.Pod) bool { return !ready(p) })
	if s := containerStatus(p, "main"); s.Ready || s.State.Running == nil || s.RestartCount != 0 {
		t.Errorf("status: %+v", s)
	}
	r.exec(p, "main", "sh", "-c", "echo ok >/tmp/www/healthz")
	p = r.awaitReady(p)

	r.exec(p, "main", "rm", "/tmp/alive")
	p = r.await(p, "is restarted", func(p *corev1.Pod) bool { return containerStatus(p, "main").RestartCount == 1 })
	p = r.awaitReady(p)
	// A grace period of zero still leaves two seconds, so the container ended by itself.
	if last := containerStatus(p, "main").LastTerminationState.Terminated; last == nil || last.ExitCode != 0 {
		t.Errorf("last state: %+v", last)
	}
	r.until("event Unhealthy", time.Minute, func() bool { return r.hasEvent(p, "Unhealthy") })
}

func TestImageProblems(t *testing.T) {
	r := newRig(t)
	never := simple("never", forever)
	never.Spec.Containers[0].Image, never.Spec.Containers[0].ImagePullPolicy = "keelson.test/absent:1", corev1.PullNever
	absent := simple("absent", forever)
	absent.Spec.Containers[0].Image = "127.0.0.1:1/absent:1"
	invalid := simple("invalid", forever)
	invalid.Spec.Containers[0].Image = "UPPER/case"
	missing := simple("missing", forever)
	missing.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "absent"}}}}
	command := simple("command", "")
	command.Spec.Containers[0].Command = []string{"/no/such/program"}
	for _, c := range []struct {
		pod     *corev1.Pod
		reason  string
		message string
	}{
		{never, "ErrImageNeverPull", "is not present with pull policy of Never"},
		{absent, "ImagePullBackOff", "Back-off pulling image"},
		{invalid, "InvalidImageName", "couldn't parse image name"},
		{missing, "CreateContainerConfigError", `configmap "absent" not found`},
	} {
		p := r.create(c.pod)
		p = r.await(p, "waits with "+c.reason, func(p *corev1.Pod) bool {
			s := containerStatus(p, "main")
			return s.State.Waiting != nil && s.State.Waiting.Reason == c.reason
		})
		if s := containerStatus(p, "main"); !strings.Contains(s.State.Waiting.Message, c.message) || p.Status.Phase != corev1.PodPending {
			t.Errorf("%s: %s %q", p.Name, p.Status.Phase, s.State.Waiting.Message)
		}
	}
	p := r.create(command)
	p = r.await(p, "failed to run", func(p *corev1.Pod) bool { return containerStatus(p, "main").RestartCount > 0 })
	if last := containerStatus(p, "main").LastTerminationState.Terminated; last == nil || last.Reason != "StartError" || last.ExitCode != 128 {
		t.Errorf("last state: %+v", last)
	}
	// The missing ConfigMap is created: the container starts without waiting out its delay.
	r.createObject(&corev1.ConfigMap{ObjectMeta: meta("absent"), Data: map[string]string{"A": "b"}})
	pace := pacetest.Start(t)
	began := time.Now()
	r.awaitReady(missing)
	if took := pace.Since(began); took > 5*time.Second {
		t.Errorf("the container became ready %v after its ConfigMap was created", took)
	}
}
