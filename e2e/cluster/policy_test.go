package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// policyManifest is a server, with a client that may reach it on its node and others elsewhere. The
// server sends lines for as long as a connection lasts, and says when one has ended.
const policyManifest = `
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: keelson.dev/demo/busybox:1
    command: [sh, -c, 'while true; do nc -l -p 9000 -e sh -c "while echo tick; do sleep 0.1; done" 2>/dev/null; echo ended; done']
  - {name: web, image: "keelson.dev/demo/busybox:1", command: [sh, -c, "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 9001 -h /www"]}
---
`

// clientPod is a pod that runs a script on a node.
func clientPod(name, node, script string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeName: %s
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "keelson.dev/demo/busybox:1", command: [sh, -c, %q]}]
---
`, name, name, node, script)
}

// pageCommand is a command that fetches the server's page.
func pageCommand(ip string) string {
	return `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 ` + ip + " 9001"
}

// TestNetworkPolicy: a default deny, what a label allows, a pod that begins under a policy, an
// established connection that a new policy forbids, and the end of the policies.
func TestNetworkPolicy(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	kubectl := func(args ...string) string { return shared.Kubectl(t, append([]string{"-n", ns}, args...)...) }
	shared.Apply(t, policyManifest+clientPod("near", "node-1", forever)+clientPod("far", "node-2", forever), "-n", ns)
	awaitReady(t, ns, "server", "near", "far")
	ip := field(t, ns, "server", ".status.podIP")
	asks := func(ctx context.Context, from string) error {
		out, err := shared.Run(ctx, "kubectl", "-n", ns, "exec", from, "--", "sh", "-c", pageCommand(ip))
		if err == nil && !strings.Contains(out, "hello") {
			err = fmt.Errorf("the server said %q", out)
		}
		return err
	}
	reaches := func(from string) {
		t.Helper()
		wait.For(t, time.Minute, from+" reaches the server", func(ctx context.Context) error { return asks(ctx, from) })
	}
	refused := func(from string) {
		t.Helper()
		wait.For(t, time.Minute, from+" does not reach the server", func(ctx context.Context) error {
			if asks(ctx, from) == nil {
				return errors.New("it does")
			}
			return nil
		})
	}
	reaches("near")
	reaches("far")

	// A connection that begins before the policy, over a Service.
	kubectl("expose", "pod", "server", "--port=9000")
	vip := kubectl("get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	shared.Apply(t, clientPod("long", "node-2", "nc "+vip+" 9000; echo over"), "-n", ns)
	shared.Shows(t, time.Minute, "tick", "-n", ns, "logs", "long")

	shared.Apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {}, policyTypes: [Ingress]}
`, "-n", ns)
	refused("near")
	refused("far")
	shared.Shows(t, 30*time.Second, "ended", "-n", ns, "logs", "server", "-c", "main")

	// Its first packets are refused, although it sends them at once.
	shared.Apply(t, clientPod("first", "node-2", pageCommand(ip)+" 2>/dev/null || echo refused"), "-n", ns)
	shared.Shows(t, time.Minute, "Succeeded", "-n", ns, "get", "pod", "first", "-o", "jsonpath={.status.phase}")
	if out := kubectl("logs", "first"); out != "refused\n" {
		t.Errorf("a pod under a policy: %q", out)
	}

	shared.Apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: far}}}], ports: [{port: 9001}]}]
`, "-n", ns)
	reaches("far")
	refused("near")
	if out := kubectl("get", "netpol"); !strings.Contains(out, "POD-SELECTOR") || !strings.Contains(out, "app=server") || !strings.Contains(out, "<none>") {
		t.Errorf("kubectl get netpol prints\n%s", out)
	}
	kubectl("label", "pod", "near", "app=far", "--overwrite")
	reaches("near")
	kubectl("label", "pod", "near", "app=near", "--overwrite")
	refused("near")

	kubectl("delete", "netpol", "--all")
	reaches("near")
	reaches("far")
}
