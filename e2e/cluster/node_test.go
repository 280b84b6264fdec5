package cluster_test

import (
	"context"
	"strings"
	"testing"
	"time"
)

// caseDebug adds a container to a running pod, as kubectl debug -it does, and talks to it.
func caseDebug(t *testing.T, ns string) {
	shared.Apply(t, boxPod("debugged", "", "", "echo the-target; "+forever), "-n", ns)
	awaitReady(t, ns, "debugged")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := shared.Command(ctx, "kubectl", "-n", ns, "debug", "-it", "debugged", "--quiet",
		"--image=keelson.dev/demo/busybox:1", "--image-pull-policy=IfNotPresent", "--target=main", "--container=debugger", "--profile=general",
		"--", "sh", "-c", "read line; echo got $line; tr '\\0' ' ' </proc/1/cmdline; exit 3")
	input, err := cmd.StdinPipe() // open until the end: the runtime detaches a session whose input has ended
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := input.Write([]byte("hello\n")); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // with the container's exit code, or without, if it ended before kubectl attached
	if !strings.Contains(out.String(), "got hello") {
		t.Errorf("the session printed %q", out.String())
	}
	shared.Shows(t, time.Minute, "3", "-n", ns, "get", "pod", "debugged", "-o", "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}")
	if log := shared.Kubectl(t, "-n", ns, "logs", "debugged", "-c", "debugger"); !strings.Contains(log, "sleep 3600") {
		t.Errorf("the process 1 that it saw is not the target's: %q", log)
	}
	if got := field(t, ns, "debugged", ".status.phase") + field(t, ns, "debugged", ".status.containerStatuses[0].restartCount"); got != "Running0" {
		t.Errorf("phase and restarts of the debugged pod: %s", got)
	}
}

// caseResize changes the limits of a running container.
func caseResize(t *testing.T, ns string) {
	limit := "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
	shared.Apply(t, boxPod("resized", "", "    resources: {requests: {cpu: 20m, memory: 16Mi}, limits: {cpu: 100m, memory: 64Mi}}\n", forever), "-n", ns)
	awaitReady(t, ns, "resized")
	for memory, bytes := range map[string]string{"96Mi": "100663296", "48Mi": "50331648"} {
		shared.Kubectl(t, "-n", ns, "patch", "pod", "resized", "--subresource", "resize", "-p",
			`{"spec":{"containers":[{"name":"main","resources":{"limits":{"memory":"`+memory+`"}}}]}}`)
		shared.Shows(t, time.Minute, memory, "-n", ns, "get", "pod", "resized", "-o", "jsonpath={.status.containerStatuses[0].resources.limits.memory}")
		shared.Shows(t, time.Minute, bytes, "-n", ns, "exec", "resized", "--", "sh", "-c", limit)
	}
	if got := field(t, ns, "resized", ".status.containerStatuses[0].restartCount"); got != "0" {
		t.Errorf("%s restarts", got)
	}
	awaitEvent(t, ns, "resized", "ResizeCompleted", "Pod resize completed")
}

// caseImageVolume mounts an image.
func caseImageVolume(t *testing.T, ns string) {
	shared.Apply(t, boxPod("mounting", "  volumes: [{name: v, image: {reference: \"keelson.dev/demo/busybox:1\"}}]\n",
		"    volumeMounts: [{name: v, mountPath: /v, subPath: usr/bin}]\n", forever), "-n", ns)
	awaitReady(t, ns, "mounting")
	shared.Kubectl(t, "-n", ns, "exec", "mounting", "--", "test", "-e", "/v/busybox")
}

// caseRuntimeClass runs a pod with the handler of its class. A handler that the runtime does
// not have is reported.
func caseRuntimeClass(t *testing.T, ns string) {
	shared.Apply(t, `
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: e2e-known}
handler: runc
overhead: {podFixed: {cpu: 10m}}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: e2e-unknown}
handler: no-such-handler
`)
	defer shared.Kubectl(t, "delete", "runtimeclass", "e2e-known", "e2e-unknown")
	shared.Apply(t, boxPod("classed", "  runtimeClassName: e2e-known\n", "", forever)+boxPod("misclassed", "  runtimeClassName: e2e-unknown\n", "", forever), "-n", ns)
	awaitReady(t, ns, "classed")
	awaitEvent(t, ns, "misclassed", "FailedCreatePodSandBox", "no-such-handler")
	if out := shared.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].status.runtimeHandlers[*].name}"); !strings.Contains(out, "runc") {
		t.Errorf("handlers of a node: %q", out)
	}
}
