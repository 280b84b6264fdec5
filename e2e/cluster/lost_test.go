package cluster_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// unplug takes a node off the network until the test ends or plug is called.
func unplug(t *testing.T, node string) (plug func()) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(shared.home, "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(data, &c); err != nil || c.ID == "" {
		t.Fatalf("cluster.json has no id: %v", err)
	}
	link := "kv" + c.ID + "-" + strings.TrimPrefix(node, "node-")
	if out, err := exec.Command("ip", "link", "set", link, "down").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	plugged := false
	plug = func() {
		if !plugged {
			plugged = true
			if out, err := exec.Command("ip", "link", "set", link, "up").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
	}
	t.Cleanup(plug)
	return plug
}

// TestNodeLost takes a node off the network: it is NotReady within 10 s, its
// ReplicaSet's pods run elsewhere within 60 s, and when it comes back it ends what
// runs there no longer by anybody's wish.
func TestNodeLost(t *testing.T) {
	ns := namespace(t)
	apply(t, strings.Replace(strings.Replace(webManifest, "replicas: 1", "replicas: 3", 1), "metadata: {name: web,", "metadata: {name: web, namespace: "+ns+",", 1))
	kubectl(t, "-n", ns, "rollout", "status", "deployment/web", "--timeout=60s")
	// Where its pods are is the scheduler's choice, which other tests' pods sway.
	var node, was string
	for _, node = range []string{"node-2", "node-1", "node-0"} {
		was = kubectl(t, "-n", ns, "get", "pods", "-o", "wide", "--field-selector", "spec.nodeName="+node, "--no-headers")
		if strings.TrimSpace(was) != "" {
			break
		}
	}
	if strings.TrimSpace(was) == "" {
		t.Fatalf("no pod on any node:\n%s", kubectl(t, "-n", ns, "get", "pods", "-o", "wide"))
	}
	began := time.Now()
	plug := unplug(t, node)
	eventually(t, 20*time.Second, node+" is NotReady", func() error {
		out, err := try("kubectl", "get", "node", node, "--no-headers")
		if err == nil && !strings.Contains(out, " NotReady ") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	notReady := time.Since(began)
	eventually(t, 90*time.Second, "three pods are ready on the other nodes", func() error {
		out, err := try("kubectl", "-n", ns, "get", "pods", "-o",
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
			return fmt.Errorf("%d are:\n%s", elsewhere, out)
		}
		return nil
	})
	moved := time.Since(began)
	plug()
	eventually(t, 60*time.Second, node+" is back, without what it lost", func() error {
		out, err := try("kubectl", "get", "node", node, "--no-headers")
		if err == nil && !strings.Contains(out, " Ready ") {
			err = fmt.Errorf("%s", out)
		}
		if err != nil {
			return err
		}
		out, err = try("kubectl", "-n", ns, "get", "pods", "-o", "wide", "--no-headers")
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
	t.Logf("NotReady after %s, pods elsewhere after %s, all well %s after it came back",
		notReady.Round(100*time.Millisecond), moved.Round(100*time.Millisecond), (time.Since(began) - moved).Round(100*time.Millisecond))
	if notReady > 10*time.Second {
		t.Errorf("NotReady after %s, want 10 s at most", notReady)
	}
	if moved > 60*time.Second {
		t.Errorf("pods ran elsewhere after %s, want 60 s at most", moved)
	}
}
