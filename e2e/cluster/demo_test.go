package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// TestDemo deploys the demonstration application and uses all of it: names,
// ClusterIP, NodePort, load balancer, a volume that outlives its pod, a new
// version under load, a Job, and one trace of it all.
func TestDemo(t *testing.T) {
	shared.Kubectl(t, "apply", "-f", "../../deploy/demo/demo.yaml")
	cleanup(t, "kubectl", "delete", "namespace", "demo", "--wait=false")
	for _, d := range []string{"postgres", "redis", "shop", "web"} {
		shared.Kubectl(t, "-n", "demo", "rollout", "status", "deployment/"+d, "--timeout=90s")
	}
	shared.Kubectl(t, "-n", "demo", "wait", "--for=condition=Complete", "job/migrate", "--timeout=60s")

	var address string
	wait.For(t, time.Minute, "the load balancer has an address", func(ctx context.Context) error {
		address = shared.Kubectl(t, "-n", "demo", "get", "service", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if address == "" {
			return fmt.Errorf("none yet")
		}
		return nil
	})
	web := "http://" + address
	wait.For(t, time.Minute, "the load balancer answers", func(ctx context.Context) error { return post(web+"/notes", "kept for ever") })

	t.Run("ByNameThroughClusterIP", func(t *testing.T) {
		shared.Kubectl(t, "-n", "demo", "run", "client", "--image=keelson.dev/demo/busybox:1", "--restart=Never", "--command", "--",
			"wget", "-q", "-O", "-", "http://web.demo.svc.cluster.local/")
		shared.Kubectl(t, "-n", "demo", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/client", "--timeout=60s")
		if log := shared.Kubectl(t, "-n", "demo", "logs", "client"); !strings.Contains(log, "It works") {
			t.Errorf("the page by name: %s", log)
		}
	})
	t.Run("NodePort", func(t *testing.T) {
		port := shared.Kubectl(t, "-n", "demo", "get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
		for _, ip := range strings.Fields(shared.Kubectl(t, "get", "nodes", "-o", `jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}`)) {
			wait.For(t, 30*time.Second, "the node port answers on "+ip, func(ctx context.Context) error { return get("http://" + ip + ":" + port + "/") })
		}
	})
	t.Run("VolumeOutlivesPod", func(t *testing.T) {
		old := shared.Kubectl(t, "-n", "demo", "get", "pod", "-l", "app=postgres", "-o", "jsonpath={.items[0].metadata.uid}")
		shared.Kubectl(t, "-n", "demo", "delete", "pod", "-l", "app=postgres")
		wait.For(t, 60*time.Second, "another pod serves the same data", func(ctx context.Context) error {
			body, err := fetch(web + "/")
			if err != nil {
				return err
			}
			if uid := shared.Kubectl(t, "-n", "demo", "get", "pod", "-l", "app=postgres", "-o", "jsonpath={.items[0].metadata.uid}"); uid == old {
				return fmt.Errorf("it is still pod %s", uid)
			}
			if !strings.Contains(body, "kept for ever") {
				return fmt.Errorf("the note is not on the page: %s", body)
			}
			return nil
		})
	})
	t.Run("NewVersionUnderLoad", func(t *testing.T) {
		load := startLoad(web+"/version", 4)
		shared.Kubectl(t, "-n", "demo", "set", "env", "deployment/shop", "SHOP_VERSION=2")
		shared.Kubectl(t, "-n", "demo", "rollout", "status", "deployment/shop", "--timeout=120s")
		shared.Kubectl(t, "-n", "demo", "rollout", "restart", "deployment/web")
		shared.Kubectl(t, "-n", "demo", "rollout", "status", "deployment/web", "--timeout=120s")
		total, failed, first := load.stop()
		t.Logf("%d requests during the roll-outs, %d failed", total, failed)
		if failed > 0 || total < 100 {
			t.Errorf("%d of %d requests failed; the first: %v", failed, total, first)
		}
		if body, err := fetch(web + "/version"); err != nil || !strings.HasPrefix(body, "2 ") {
			t.Errorf("after the roll-out: %q, %v; want version 2", body, err)
		}
	})
	t.Run("Trace", testTrace)
}

// testTrace: objects that are applied with one traceparent make one trace, in which no
// span's parent is missing.
func testTrace(t *testing.T) {
	const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	manifest := fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata:
  name: traced
  namespace: demo
  annotations: {tracing.k8s.io/traceparent: "00-%[1]s-00f067aa0ba902b7-01"}
spec:
  selector: {matchLabels: {app: traced}}
  template:
    metadata: {labels: {app: traced}}
    spec:
      containers:
        - {name: nginx, image: "keelson.dev/demo/nginx:1", readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata:
  name: traced
  namespace: demo
  annotations: {tracing.k8s.io/traceparent: "00-%[1]s-00f067aa0ba902b7-01"}
spec:
  type: LoadBalancer
  selector: {app: traced}
  ports: [{port: 80}]
`, traceID)
	shared.Apply(t, manifest)
	shared.Kubectl(t, "-n", "demo", "rollout", "status", "deployment/traced", "--timeout=60s")
	var trace struct {
		TraceID string `json:"trace_id"`
		Spans   []struct {
			SpanID       string `json:"span_id"`
			ParentSpanID string `json:"parent_span_id"`
			Service      string `json:"service"`
			Name         string `json:"name"`
			RemoteParent bool   `json:"remote_parent"`
		} `json:"spans"`
	}
	wait.For(t, time.Minute, "one trace through all five services", func(ctx context.Context) error {
		for _, object := range []string{"deployment/traced", "service/traced"} {
			out, err := shared.Run(ctx, "keel", "trace", object, "-n", "demo", "-o", "json", "--home", shared.Home)
			if err != nil {
				return err
			}
			if err := json.Unmarshal([]byte(out), &trace); err != nil {
				return err
			}
			if trace.TraceID != traceID {
				return fmt.Errorf("%s: trace %s, want the client's %s", object, trace.TraceID, traceID)
			}
		}
		services, spans := map[string]bool{}, map[string]bool{}
		for _, s := range trace.Spans {
			services[s.Service], spans[s.SpanID] = true, true
		}
		for _, want := range []string{"apiserver", "scheduler", "controller-manager", "cloud-controller", "node"} {
			if !services[want] {
				return fmt.Errorf("no span of %s among %d", want, len(trace.Spans))
			}
		}
		for _, s := range trace.Spans {
			if s.ParentSpanID != "" && !spans[s.ParentSpanID] && s.ParentSpanID != "00f067aa0ba902b7" {
				return fmt.Errorf("%s %q: its parent %s is missing", s.Service, s.Name, s.ParentSpanID)
			}
		}
		return nil
	})
}

var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func fetch(url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

func get(url string) error {
	_, err := fetch(url)
	return err
}

func post(url, text string) error {
	resp, err := client.Post(url, "text/plain", strings.NewReader(text))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// load requests a page again and again until it is stopped.
type load struct {
	cancel        context.CancelFunc
	wg            sync.WaitGroup
	total, failed atomic.Int64
	first         atomic.Pointer[error]
}

func startLoad(url string, callers int) *load {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	l := &load{cancel: cancel}
	for range callers {
		l.wg.Go(func() {
			for ctx.Err() == nil {
				l.total.Add(1)
				if err := get(url); err != nil {
					l.failed.Add(1)
					l.first.CompareAndSwap(nil, &err)
				}
				wait.Pause(ctx, 10*time.Millisecond)
			}
		})
	}
	return l
}

func (l *load) stop() (total, failed int64, first error) {
	l.cancel()
	l.wg.Wait()
	if p := l.first.Load(); p != nil {
		first = *p
	}
	return l.total.Load(), l.failed.Load(), first
}

// TestDeleteLeavesNothing starts a second cluster beside the shared one, runs a pod in
// it, deletes it, and finds none of its traces on the machine.
func TestDeleteLeavesNothing(t *testing.T) {
	second := cluster.Start(t, "--nodes", "1")
	var file struct{ Subnet int }
	if data, err := os.ReadFile(second.Home + "/cluster.json"); err != nil || json.Unmarshal(data, &file) != nil {
		t.Fatalf("read the subnet of the second cluster: %v", err)
	}
	if err := second.LoadImages(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	second.Kubectl(t, "run", "box", "--image=keelson.dev/demo/busybox:1", "--command", "--", "sleep", "1000")
	second.Kubectl(t, "wait", "--for=condition=Ready", "pod/box", "--timeout=60s")
	wait.For(t, time.Minute, "the shared cluster is not disturbed", func(ctx context.Context) error { return shared.Healthy(ctx, "") })
	traces := []string{second.ID(t), second.Home, fmt.Sprintf("10.89.%d.", file.Subnet), fmt.Sprintf("10.90.%d.", file.Subnet)}
	for place, found := range footprint(t, traces) {
		if found == "" {
			t.Errorf("%s: a running cluster has no trace there, so the test would not see one", place)
		}
	}
	second.Keel(t, "delete")
	for place, found := range footprint(t, traces) {
		if found != "" {
			t.Errorf("%s: keel delete left\n%s", place, found)
		}
	}
	if _, err := os.Stat(second.Home); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", second.Home, err)
	}
}

// footprint is every line about a cluster that the machine's tools print, by place.
func footprint(t *testing.T, traces []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for place, script := range map[string]string{
		"links":      `ip -o link`,
		"namespaces": `ip netns`,
		"routes":     `ip route show table all`,
		"mounts":     `cat /proc/self/mountinfo`,
		// find fails if another cluster's group is removed meanwhile.
		"cgroups":   `find /sys/fs/cgroup -maxdepth 2 -name 'keelson-*' 2>/dev/null || true`,
		"processes": `ps -eo pid,stat,args | awk '$2 !~ /Z/' | grep -v ' awk \| ps \|keel up'`,
	} {
		all, err := exec.Command("sh", "-c", script).Output()
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		for line := range strings.Lines(string(all)) {
			if slices.ContainsFunc(traces, func(trace string) bool { return strings.Contains(line, trace) }) {
				out[place] += line
			} else if _, ok := out[place]; !ok {
				out[place] = ""
			}
		}
	}
	return out
}
