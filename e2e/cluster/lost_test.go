package cluster_test

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// unplug takes a node off the network until the test ends or plug is called.
func unplug(t *testing.T, node string) (plug func()) {
	t.Helper()
	link := "kv" + shared.ID(t) + "-" + strings.TrimPrefix(node, "node-")
	if out, err := exec.Command("ip", "link", "set", link, "down").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	plug = sync.OnceFunc(func() {
		if out, err := exec.Command("ip", "link", "set", link, "up").CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Cleanup(plug)
	return plug
}

// TestNodeLost takes a node off the network: it is NotReady within 10 s, the pods of its
// ReplicaSets run elsewhere within 60 s, and when it comes back it ends the pods that
// were replaced meanwhile.
func TestNodeLost(t *testing.T) {
	ns := namespace(t)
	shared.Apply(t, strings.Replace(webManifest, "replicas: 1", "replicas: 3", 1), "-n", ns)
	shared.Kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=60s")
	// The scheduler chooses where the pods run, and considers the pods of other tests.
	var node, was string
	for _, node = range []string{"node-2", "node-1", "node-0"} {
		was = shared.Kubectl(t, "-n", ns, "get", "pods", "-o", "wide", "--field-selector", "spec.nodeName="+node, "--no-headers")
		if strings.TrimSpace(was) != "" {
			break
		}
	}
	if strings.TrimSpace(was) == "" {
		t.Fatalf("no node has a pod:\n%s", shared.Kubectl(t, "-n", ns, "get", "pods", "-o", "wide"))
	}
	began := time.Now()
	plug := unplug(t, node)
	shared.Shows(t, 20*time.Second, " NotReady ", "get", "node", node, "--no-headers")
	notReady := time.Since(began)
	wait.For(t, 90*time.Second, "three pods are ready on the other nodes", func(ctx context.Context) error {
		out, err := shared.Run(ctx, "kubectl", "-n", ns, "get", "pods", "-o",
			`jsonpath={range .items[*]}{.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err != nil {
			return err
		}
		elsewhere := 0
		for line := range strings.Lines(out) {
			if strings.HasSuffix(strings.TrimSpace(line), " True") && !strings.HasPrefix(line, node+" ") {
				elsewhere++
			}
		}
		if elsewhere != 3 {
			return fmt.Errorf("%d are ready elsewhere:\n%s", elsewhere, out)
		}
		return nil
	})
	moved := time.Since(began)
	plug()
	wait.For(t, 60*time.Second, node+" is Ready and has ended the pods that were replaced", func(ctx context.Context) error {
		out, err := shared.Run(ctx, "kubectl", "get", "node", node, "--no-headers")
		if err == nil && !strings.Contains(out, " Ready ") {
			err = fmt.Errorf("%s", out)
		}
		if err != nil {
			return err
		}
		out, err = shared.Run(ctx, "kubectl", "-n", ns, "get", "pods", "-o", "wide", "--no-headers")
		if err != nil {
			return err
		}
		for line := range strings.Lines(was) {
			if name := strings.Fields(line)[0]; strings.Contains(out, name+" ") {
				return fmt.Errorf("%s is still there:\n%s", name, out)
			}
		}
		return nil
	})
	t.Logf("NotReady after %s, pods elsewhere after %s, recovered %s after it came back",
		notReady.Round(100*time.Millisecond), moved.Round(100*time.Millisecond), (time.Since(began) - moved).Round(100*time.Millisecond))
	if notReady > 10*time.Second {
		t.Errorf("NotReady after %s, want 10 s at most", notReady)
	}
	if moved > 60*time.Second {
		t.Errorf("the pods ran elsewhere after %s, want 60 s at most", moved)
	}
}
