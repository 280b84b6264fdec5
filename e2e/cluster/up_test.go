package cluster_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
)

// TestUp: `keel up` leads to three Ready nodes in the time that docs/figures.md states.
func TestUp(t *testing.T) {
	t.Logf("keel up took %s", up)
	if up > 10*time.Second {
		t.Errorf("keel up took %s, want 10 s at most", up)
	}
	if ready := strings.Count(shared.Kubectl(t, "get", "nodes", "--no-headers"), " Ready "); ready != 3 {
		t.Errorf("%d nodes are Ready, want 3:\n%s", ready, shared.Kubectl(t, "get", "nodes", "-o", "wide"))
	}
}

// TestUpAgain: a second `keel up` changes nothing.
func TestUpAgain(t *testing.T) {
	before := processes(t)
	shared.Keel(t, "up")
	after := processes(t)
	for i := range before {
		if before[i].PID != after[i].PID {
			t.Errorf("%s was restarted: pid %d, then %d", before[i].Name, before[i].PID, after[i].PID)
		}
	}
}

// TestWrongCalls: a wrong call is answered by one line and exit code 2.
func TestWrongCalls(t *testing.T) {
	for _, c := range []struct {
		program string
		args    []string
		want    string
	}{
		{"keel", []string{"up", "--nodes", "many"}, "invalid argument"},
		{"keel", []string{"teleport"}, "unknown command"},
		{"keel", []string{"trace", "teapot/x"}, "cannot find traces by the kind"},
		{"apiserver", []string{"--no-such-flag"}, "no-such-flag"},
		{"scheduler", []string{"--no-such-flag"}, "no-such-flag"},
		{"controller-manager", []string{"--no-such-flag"}, "no-such-flag"},
		{"cloud-controller", []string{"--no-such-flag"}, "no-such-flag"},
		{"node", []string{"--no-such-flag"}, "no-such-flag"},
		{"apiserver", []string{"--identity", shared.Home + "/pki/apiserver", "--data-dir", "/proc/nowhere"}, "/proc/nowhere"},
	} {
		cmd := shared.Command(t.Context(), c.program, c.args...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); err == nil || code != 2 {
			t.Errorf("%s %v: exit code %d, want 2: %s", c.program, c.args, code, out)
		}
		if !strings.Contains(string(out), c.want) || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
			t.Errorf("%s %v: want one line with %q, got:\n%s", c.program, c.args, c.want, out)
		}
	}
}

// TestNodesLeave removes a node that runs pods: the pods end, those of a controller are
// replaced elsewhere, and nothing of the node is left on the machine.
func TestNodesLeave(t *testing.T) {
	shared.Keel(t, "up", "--nodes", "4")
	ns := namespace(t)
	shared.Apply(t, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: moves, namespace: %[1]s}
spec:
  replicas: 1
  selector: {matchLabels: {app: moves}}
  template:
    metadata: {labels: {app: moves}}
    spec:
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - {weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node-3]}]}}
      terminationGracePeriodSeconds: 2
      containers: [{name: c, image: keelson.dev/demo/busybox:1, command: [sleep, "31536000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn, namespace: %[1]s}
spec:
  nodeName: node-3
  terminationGracePeriodSeconds: 600
  containers: [{name: c, image: keelson.dev/demo/busybox:1, command: [sh, -c, "trap '' TERM; while :; do busybox sleep 1; done"]}]
`, ns))
	shared.Kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "pod/stubborn", "--timeout=60s")
	shared.Kubectl(t, "-n", ns, "rollout", "status", "deployment/moves", "--timeout=60s")
	if on := shared.Kubectl(t, "-n", ns, "get", "pods", "-l", "app=moves", "-o", "jsonpath={.items[*].spec.nodeName}"); on != "node-3" {
		t.Fatalf("the pod runs on %s", on)
	}
	out := shared.Keel(t, "up", "--nodes", "3", "--drain-timeout", "2s")
	if !strings.Contains(out, "node-3") {
		t.Errorf("the output does not name the node that leaves:\n%s", out)
	}
	if nodes := shared.Kubectl(t, "get", "nodes", "-o", "name"); strings.Contains(nodes, "node-3") {
		t.Errorf("the nodes are still\n%s", nodes)
	}
	shared.Kubectl(t, "-n", ns, "rollout", "status", "deployment/moves", "--timeout=60s")
	if pods := shared.Kubectl(t, "-n", ns, "get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"); strings.Contains(pods, "node-3") {
		t.Errorf("pods run on %s", pods)
	}
	id := shared.ID(t)
	if err := cluster.Watch.Gone(shared.Home+"/nodes/node-3", "keelson-"+id+"-node-3", "kv"+id+"-3"); err != nil {
		t.Error(err)
	}
	for _, left := range []string{"nodes/node-3", "pki/node-3"} {
		if _, err := os.Stat(filepath.Join(shared.Home, left)); err == nil {
			t.Errorf("%s is still there", left)
		}
	}
	if found, _ := filepath.Glob("/sys/fs/cgroup/*/keelson-" + id + "/node-3"); len(found) > 0 {
		t.Errorf("cgroups are left: %v", found)
	}
}
