package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// caseOf is one way in which a node could behave differently from Kubernetes' kubelet,
// with which users of other distributions had trouble.
type caseOf struct {
	name string
	run  func(t *testing.T, ns string)
}

// TestCases checks what charts, operators and log collectors rely on.
func TestCases(t *testing.T) {
	ns := namespace(t)
	for _, c := range []caseOf{
		{"an HTTP hook accepts any status", caseHTTPHooks},
		{"an extended resource that another component advertises stays", caseForeignResource},
		{"log files are where collectors look", caseLogFiles},
		{"a sidecar's preStop hook runs when the pod begins to end", caseSidecarHook},
		{"a sidecar has two seconds to end", caseSidecarGrace},
		{"a forced deletion leaves two seconds to end", caseForced},
		{"UDP to a host port reaches the next pod", caseHostPort},
		{"timestamps of log lines have nine digits", caseTimestamps},
		{"container statuses are sorted by name", caseStatusOrder},
		{"kubectl debug runs a container in a running pod", caseDebug},
		{"a running container is resized", caseResize},
		{"a volume is an image", caseImageVolume},
		{"a pod runs with its RuntimeClass's handler", caseRuntimeClass},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t, ns)
		})
	}
}

// field reads one field of a pod.
func field(t *testing.T, ns, pod, path string) string {
	t.Helper()
	return shared.Kubectl(t, "-n", ns, "get", "pod", pod, "-o", "jsonpath={"+path+"}")
}

func awaitReady(t *testing.T, ns string, pods ...string) {
	t.Helper()
	for _, p := range pods {
		shared.Kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "--timeout=100s", "pod/"+p)
	}
}

// awaitEvent waits until a pod has an event with this reason and text.
func awaitEvent(t *testing.T, ns, pod, reason, text string) {
	t.Helper()
	shared.Shows(t, time.Minute, text, "-n", ns, "get", "events", "--field-selector", "involvedObject.name="+pod+",reason="+reason, "-o", "jsonpath={.items[*].message}")
}

// awaitLines waits until a file has these lines in this order.
func awaitLines(t *testing.T, file string, want ...string) {
	t.Helper()
	wait.For(t, time.Minute, "the file is written", func(context.Context) error { return hasLines(file, want...) })
}

func hasLines(file string, want ...string) error {
	b, err := os.ReadFile(file)
	if err == nil && !slices.Equal(strings.Fields(string(b)), want) {
		err = fmt.Errorf("%s has %q, want %q", file, strings.Fields(string(b)), want)
	}
	return err
}

// withinGrace makes up to three attempts at a case that needs most of a grace period of
// two seconds, because a pause of the machine counts against it. A pod that is given less
// than two seconds fails all of them.
func withinGrace(t *testing.T, attempt func(n int) error) {
	t.Helper()
	var err error
	for n := range 3 {
		if err = attempt(n); err == nil {
			return
		}
		t.Logf("attempt %d: %v", n, err)
	}
	t.Error(err)
}

// boxPod is the manifest of a pod with further fields of the spec, and of a container that
// runs a script.
func boxPod(name, spec, container, script string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
%s
  containers:
  - name: main
    image: keelson.dev/demo/busybox:1
    command: [sh, -c, %q]
%s---
`, name, spec, script, container)
}

const forever = "exec sleep 3600"

func caseHTTPHooks(t *testing.T, ns string) {
	shared.Apply(t, `
apiVersion: v1
kind: ConfigMap
metadata: {name: hook-target}
data:
  default.conf: |
    server {
      listen 80;
      root /var/www/html;
      location = /away { return 302 http://elsewhere.example/; }
    }
---
apiVersion: v1
kind: Pod
metadata: {name: hook-target}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: keelson.dev/demo/nginx:1
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
    volumeMounts: [{name: conf, mountPath: /etc/nginx/conf.d}]
  volumes: [{name: conf, configMap: {name: hook-target}}]
`, "-n", ns)
	awaitReady(t, ns, "hook-target")
	ip := field(t, ns, "hook-target", ".status.podIP")
	shared.Apply(t, boxPod("hook-404", "", "    lifecycle: {postStart: {httpGet: {host: "+ip+", port: 80, path: /no-such-page}}}\n", forever)+
		boxPod("hook-tls", "", "    lifecycle: {postStart: {httpGet: {host: "+ip+", port: 80, path: /, scheme: HTTPS}}}\n", forever)+
		boxPod("probe-away", "", "    readinessProbe: {httpGet: {host: "+ip+", port: 80, path: /away}, periodSeconds: 1}\n", forever), "-n", ns)
	awaitReady(t, ns, "hook-404", "hook-tls", "probe-away")
	awaitEvent(t, ns, "hook-tls", "LifecycleHTTPFallback", "got HTTP response, retry with HTTP succeeded")
	awaitEvent(t, ns, "probe-away", "ProbeWarning", "Probe terminated redirects")
	for _, pod := range []string{"hook-404", "hook-tls"} {
		if n := field(t, ns, pod, ".status.containerStatuses[0].restartCount"); n != "0" {
			t.Errorf("%s was restarted %s times", pod, n)
		}
	}
}

func caseForeignResource(t *testing.T, ns string) {
	const node = "node-1"
	patch := func(op string) []string {
		return []string{"patch", "node", node, "--subresource=status", "--type=json", "-p", `[{"op":"` + op + `","path":"/status/capacity/case.example~1dongle","value":"2"}]`}
	}
	shared.Kubectl(t, patch("add")...)
	cleanup(t, "kubectl", patch("remove")...)
	resources := "    resources: {limits: {case.example/dongle: %d}}\n"
	shared.Apply(t, boxPod("dongle-one", "", fmt.Sprintf(resources, 1), forever), "-n", ns)
	awaitReady(t, ns, "dongle-one") // which shows that the resource is allocatable
	shared.Apply(t, boxPod("dongle-two", "", fmt.Sprintf(resources, 2), forever), "-n", ns)
	shared.Shows(t, time.Minute, "Insufficient case.example/dongle", "-n", ns, "get", "pod", "dongle-two", "-o", `jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}`)
	for _, list := range []string{"capacity", "allocatable"} {
		if got := shared.Kubectl(t, "get", "node", node, "-o", `jsonpath={.status.`+list+`.case\.example/dongle}`); got != "2" {
			t.Errorf("%s: %q", list, got)
		}
	}
}

func caseLogFiles(t *testing.T, ns string) {
	shared.Apply(t, boxPod("speaker", "  volumes: [{name: log, hostPath: {path: /var/log}}]", `  - name: collector
    image: keelson.dev/demo/busybox:1
    command: [sleep, "3600"]
    volumeMounts: [{name: log, mountPath: /var/log, readOnly: true}]
`, "echo a line for the collector; "+forever), "-n", ns)
	awaitReady(t, ns, "speaker")
	uid := field(t, ns, "speaker", ".metadata.uid")
	id := field(t, ns, "speaker", `.status.containerStatuses[?(@.name=="main")].containerID`)
	_, id, _ = strings.Cut(id, "://")
	folder := "/var/log/pods/" + ns + "_speaker_" + uid
	link := "/var/log/containers/speaker_" + ns + "_main-" + id + ".log"
	for _, name := range []string{folder + "/main/0.log", link} {
		wait.For(t, 30*time.Second, "a collector reads "+name, func(ctx context.Context) error {
			out, err := shared.Run(ctx, "kubectl", "-n", ns, "exec", "speaker", "-c", "collector", "--", "cat", name)
			if err == nil && !strings.HasSuffix(out, " stdout F a line for the collector\n") {
				err = fmt.Errorf("read %q", out)
			}
			return err
		})
	}
	shared.Kubectl(t, "-n", ns, "delete", "pod", "speaker")
	for _, name := range []string{folder, link} {
		wait.For(t, 30*time.Second, name+" is removed with the pod", func(context.Context) error {
			if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("it is still there: %w", err)
			}
			return nil
		})
	}
}

// outside is a directory of the node that outlives the pod, and the manifest's lines that
// mount it at /out. All nodes share the files of this machine.
func outside(t *testing.T) (dir, volume, mount string) {
	dir = t.TempDir()
	return dir, "  volumes: [{name: out, hostPath: {path: " + dir + "}}]\n", "    volumeMounts: [{name: out, mountPath: /out}]\n"
}

func sidecar(script, more string) string {
	return fmt.Sprintf(`  initContainers:
  - name: sidecar
    restartPolicy: Always
    image: keelson.dev/demo/busybox:1
    command: [sh, -c, %q]
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
%s`, script, more)
}

func caseSidecarHook(t *testing.T, ns string) {
	dir, volume, mount := outside(t)
	hook := `    lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >>/out/hook"]}}}` + "\n"
	side := sidecar("trap 'echo sidecar >>/out/log; exit 0' TERM; touch /tmp/up; while :; do sleep 1 & wait $!; done", mount+hook)
	app := "trap 'echo told >>/out/log; until [ -e /out/go ]; do usleep 20000; done; echo ended >>/out/log; exit 0' TERM; touch /tmp/up; while :; do sleep 1 & wait $!; done"
	shared.Apply(t, strings.Replace(boxPod("order", volume+side, mount+"    readinessProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}\n", app), "Seconds: 1\n", "Seconds: 60\n", 1), "-n", ns)
	awaitReady(t, ns, "order")
	shared.Kubectl(t, "-n", ns, "delete", "pod", "order", "--wait=false")
	awaitLines(t, filepath.Join(dir, "hook"), "hook") // while the application goes on
	awaitLines(t, filepath.Join(dir, "log"), "told")
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	awaitLines(t, filepath.Join(dir, "log"), "told", "ended", "sidecar")
}

func caseSidecarGrace(t *testing.T, ns string) {
	withinGrace(t, func(n int) error {
		dir, volume, mount := outside(t)
		name := fmt.Sprint("deaf-", n)
		side := sidecar("trap 'echo told >>/out/log; usleep 1000000; echo done >>/out/log; exit 0' TERM; touch /tmp/up; while :; do sleep 1 & wait $!; done", mount)
		shared.Apply(t, boxPod(name, volume+side, mount, "trap '' TERM; while :; do sleep 1; done"), "-n", ns)
		awaitReady(t, ns, name)
		shared.Kubectl(t, "-n", ns, "delete", "pod", name) // returns when its containers have ended
		return hasLines(filepath.Join(dir, "log"), "told", "done")
	})
}

func caseForced(t *testing.T, ns string) {
	for kind, args := range map[string][]string{"forced": {"--force", "--grace-period=0"}, "now": {"--grace-period=1"}} {
		withinGrace(t, func(n int) error {
			dir, volume, mount := outside(t)
			name := fmt.Sprint(kind, "-", n)
			script := "trap 'echo told >>/out/log; usleep 1200000; echo done >>/out/log; exit 0' TERM; touch /tmp/up; while :; do usleep 50000; done"
			shared.Apply(t, boxPod(name, volume, mount+"    readinessProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}\n", script), "-n", ns)
			awaitReady(t, ns, name)
			shared.Kubectl(t, append([]string{"-n", ns, "delete", "pod", name, "--wait=false"}, args...)...)
			// A forced pod's containers end after the pod is gone.
			return wait.Until(t.Context(), 20*time.Second, func(context.Context) error {
				return hasLines(filepath.Join(dir, "log"), "told", "done")
			})
		})
	}
}

func caseHostPort(t *testing.T, ns string) {
	const port = 25354 // of the node's own network
	server := func(name string) (ip string) {
		shared.Apply(t, boxPod(name, "  nodeSelector: {kubernetes.io/hostname: node-2}", fmt.Sprintf("    ports: [{containerPort: 5353, hostPort: %d, protocol: UDP}]\n", port), forever), "-n", ns)
		awaitReady(t, ns, name)
		return field(t, ns, name, ".status.hostIP")
	}
	// received counts the datagrams that have come to a pod, where no process listens.
	received := func(ctx context.Context, name string) int {
		out, err := shared.Run(ctx, "kubectl", "-n", ns, "exec", name, "--", "cat", "/proc/net/snmp")
		if err != nil {
			return 0
		}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "Udp:" && f[2] != "NoPorts" {
				n, _ := strconv.Atoi(f[2])
				return n
			}
		}
		return 0
	}
	node := server("udp-first")
	client, err := net.ListenPacket("udp4", "")
	if err != nil {
		t.Fatal(err)
	}
	to := &net.UDPAddr{IP: net.ParseIP(node), Port: port}
	ctx, stop := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() { // from one port all the time, whatever becomes of the server
		for ctx.Err() == nil {
			_, _ = client.WriteTo([]byte("x"), to)
			wait.Pause(ctx, 50*time.Millisecond)
		}
	})
	t.Cleanup(func() { stop(); sending.Wait(); client.Close() })
	reached := func(name string) {
		t.Helper()
		wait.For(t, 30*time.Second, name+" is reached", func(ctx context.Context) error {
			if received(ctx, name) == 0 {
				return errors.New("it has received no datagram")
			}
			return nil
		})
	}
	reached("udp-first")
	shared.Kubectl(t, "-n", ns, "delete", "pod", "udp-first")
	server("udp-second")
	reached("udp-second")
}

func caseTimestamps(t *testing.T, ns string) {
	shared.Apply(t, boxPod("counter", "  restartPolicy: Never", "", "i=0; while [ $i -lt 100 ]; do i=$((i + 1)); echo line $i; usleep 5000; done"), "-n", ns)
	shared.Shows(t, time.Minute, "Succeeded", "-n", ns, "get", "pod", "counter", "-o", "jsonpath={.status.phase}")
	lines := strings.Split(strings.TrimSuffix(shared.Kubectl(t, "-n", ns, "logs", "counter", "--timestamps"), "\n"), "\n")
	if len(lines) != 100 {
		t.Errorf("%d lines, want 100", len(lines))
	}
	shape := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) line \d+$`)
	for _, l := range lines {
		if !shape.MatchString(l) {
			t.Errorf("line %q", l)
		}
	}
	if !slices.IsSortedFunc(lines, func(a, b string) int { return strings.Compare(a[:30], b[:30]) }) {
		t.Error("the timestamps are not in order when compared as text")
	}
}

func caseStatusOrder(t *testing.T, ns string) {
	shared.Apply(t, strings.NewReplacer("name: main", "name: zebra").Replace(boxPod("menagerie", `  initContainers:
  - {name: second, image: "keelson.dev/demo/busybox:1", command: ["true"]}
  - {name: first, image: "keelson.dev/demo/busybox:1", command: ["true"]}`, `  - {name: middle, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"]}
  - {name: alpha, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"]}
`, forever)), "-n", ns)
	awaitReady(t, ns, "menagerie")
	if got := field(t, ns, "menagerie", ".status.containerStatuses[*].name"); got != "alpha middle zebra" {
		t.Errorf("containers: %s", got)
	}
	if got := field(t, ns, "menagerie", ".status.initContainerStatuses[*].name"); got != "second first" {
		t.Errorf("init containers: %s", got)
	}
}
