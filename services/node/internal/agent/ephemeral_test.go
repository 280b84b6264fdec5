package agent

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestEphemeralContainer checks that a container added to a running pod starts in the
// process namespace of its target, reads what it refers to, is reported, and is not started
// again, not even by another agent.
func TestEphemeralContainer(t *testing.T) {
	r := newRig(t)
	r.createObject(&corev1.ConfigMap{ObjectMeta: meta("debugging"), Data: map[string]string{"KEY": "value"}})
	p := r.awaitReady(r.create(simple("debugged", "echo main; "+forever)))
	main := containerStatus(p, "main").ContainerID
	c := box("debugger", "tr '\\0' ' ' </proc/1/cmdline; echo KEY=$KEY; exit 3")
	c.EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "debugging"}}}}
	r.update(p, func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon(c), TargetContainerName: "main"}}
	})
	ended := func(p *corev1.Pod) bool { return containerStatus(p, "debugger").State.Terminated != nil }
	p = r.await(p, "has run its ephemeral container", ended)
	st := containerStatus(p, "debugger")
	if st.State.Terminated.ExitCode != 3 || p.Status.Phase != corev1.PodRunning || !ready(p) {
		t.Errorf("phase %s, ready %v, %+v", p.Status.Phase, ready(p), st.State.Terminated)
	}
	if log := readFile(t, r.state(p).Latest("debugger").LogPath); !strings.Contains(log, "echo main;") || !strings.Contains(log, "KEY=value") {
		t.Errorf("log: %s", log)
	}
	r.stop()
	r.start()
	// The new agent starts the second container only after it has looked at the first one.
	c.Name, c.Command = "second", []string{"/bin/sh", "-c", forever}
	r.update(p, func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon(c)})
	})
	p = r.await(p, "runs its second ephemeral container", func(p *corev1.Pod) bool { return containerStatus(p, "second").State.Running != nil })
	if now := containerStatus(p, "debugger"); now.ContainerID != st.ContainerID || now.State.Terminated == nil {
		t.Errorf("the first one after a restart of the agent: %+v, was %s", now, st.ContainerID)
	}
	c.Name = "lost"
	r.update(p, func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon(c), TargetContainerName: "absent"})
	})
	p = r.await(p, "reports the missing target", func(p *corev1.Pod) bool {
		w := containerStatus(p, "lost").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && w.Message == "unable to find target container absent"
	})
	r.until("an event about it", time.Minute, func() bool { return r.eventMessage(p, "Failed") == "Error: unable to find target container absent" })
	if now := containerStatus(p, "main"); now.ContainerID != main || now.RestartCount != 0 {
		t.Errorf("the regular container: %+v", now)
	}
}
