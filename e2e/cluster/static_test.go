package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// TestStaticPod: a manifest in the nodes' directory runs on each node, kubectl sees mirror
// pods, and deleting those stops nothing; removing the file does.
func TestStaticPod(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	manifest := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: static, namespace: %s, labels: {app: static}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "keelson.dev/demo/busybox:1", command: [sh, -c, "echo started; exec sleep 3600"]}]
`, ns)
	file := filepath.Join(manifests, "static.yaml")
	t.Cleanup(func() { _ = os.Remove(file) })
	// A node must not read half of a file.
	if err := os.WriteFile(filepath.Join(manifests, ".static"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(manifests, ".static"), file); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string { return shared.Kubectl(t, append([]string{"-n", ns}, args...)...) }
	ready := func(pods ...string) {
		t.Helper()
		wait.For(t, time.Minute, "the mirror pods exist", func(ctx context.Context) error {
			_, err := shared.Run(ctx, "kubectl", append([]string{"-n", ns, "wait", "--for=condition=Ready", "--timeout=20s"}, pods...)...)
			return err
		})
	}
	ready("pod/static-node-0", "pod/static-node-1", "pod/static-node-2")
	if owner := kubectl("get", "pod", "static-node-1", "-o", "jsonpath={.metadata.ownerReferences[0].kind}/{.metadata.ownerReferences[0].name}"); owner != "Node/node-1" {
		t.Errorf("the mirror pod's owner is %q", owner)
	}
	if logs := kubectl("logs", "static-node-1"); logs != "started\n" {
		t.Errorf("kubectl logs prints %q", logs)
	}
	const state = "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}"
	before, uid := kubectl("get", "pod", "static-node-1", "-o", state), kubectl("get", "pod", "static-node-1", "-o", "jsonpath={.metadata.uid}")
	kubectl("delete", "pod", "static-node-1", "--timeout=60s")
	wait.For(t, time.Minute, "the mirror pod comes back", func(ctx context.Context) error {
		out, err := shared.Run(ctx, "kubectl", "-n", ns, "get", "pod", "static-node-1", "-o", "jsonpath={.metadata.uid}")
		if err == nil && out == uid {
			err = fmt.Errorf("it has the same uid %s", uid)
		}
		return err
	})
	ready("pod/static-node-1")
	if after := kubectl("get", "pod", "static-node-1", "-o", state); after != before || !strings.HasSuffix(after, " 0") {
		t.Errorf("deleting the mirror pod touched the container: it was %q and is %q", before, after)
	}
	if out := kubectl("exec", "static-node-1", "--", "cat", "/proc/1/cmdline"); !strings.HasPrefix(out, "sleep") {
		t.Errorf("exec in the mirror pod: %q", out)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	kubectl("wait", "--for=delete", "pod", "-l", "app=static", "--timeout=60s")
}
