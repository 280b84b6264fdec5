package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"keelson.dev/e2e/internal/wait"
	typed "keelson.dev/proto/client"
)

// worker is a deployment whose pods use twice what they request, until /tmp/idle exists.
const worker = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: worker}
spec:
  selector: {matchLabels: {app: worker}}
  template:
    metadata: {labels: {app: worker}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: busy
        image: keelson.dev/demo/busybox:1
        command: [sh, -c, "while [ ! -e /tmp/idle ]; do :; done; exec sleep 3600"]
        resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 200m, memory: 256Mi}}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
`

const workerScaler = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: worker}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: worker}
  minReplicas: 1
  maxReplicas: 3
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 0}
`

// TestUsage checks what nodes and pods use, as kubectl top, gRPC clients and scrapers read it, and
// that an autoscaler acts on it.
func TestUsage(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	shared.Apply(t, worker, "-n", ns)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := shared.Run(context.Background(), "keel", "why", "deployment/worker", "-n", ns)
			t.Log(out)
		}
	})
	shared.Kubectl(t, "-n", ns, "rollout", "status", "deployment/worker", "--timeout=60s")
	shared.Apply(t, workerScaler, "-n", ns)

	nodes := strings.Fields(shared.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	shows(t, `(?m)^`+nodes[0]+` +\d+m +\d+% +\d+Mi +\d+% *$`, "top", "node")
	shows(t, `(?m)^worker-\S+ +busy +\d+m +\d+Mi *$`, "-n", ns, "top", "pod", "--containers", "-l", "app=worker")
	shows(t, `(?m)^worker-\S+ +\d+\w* +\d+\w+ +\d\S+s$`, "-n", ns, "get", "pods.metrics.k8s.io")
	list, _, err := typed.For[*metricsv1beta1.PodMetrics](shared.Client(t)).List(t.Context(), typed.ListOptions{Namespace: ns, LabelSelector: "app=worker"})
	if err != nil || len(list) == 0 || list[0].Containers[0].Usage.Cpu().MilliValue() < 20 {
		t.Errorf("over gRPC: %+v, %v", list, err)
	}

	node := shared.Kubectl(t, "-n", ns, "get", "pods", "-l", "app=worker", "-o", "jsonpath={.items[0].spec.nodeName}")
	pod := shared.Kubectl(t, "-n", ns, "get", "pods", "-l", "app=worker", "-o", "jsonpath={.items[0].metadata.name}")
	raw := func(path string) string {
		t.Helper()
		return shared.Kubectl(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/"+path)
	}
	if got := raw("healthz"); got != "ok" {
		t.Errorf("healthz: %s", got)
	}
	var summary struct {
		Node struct{ NodeName string }
		Pods []struct {
			PodRef     struct{ Name, Namespace string }
			Network    *struct{ RxBytes uint64 }
			Volume     []struct{ Name string }
			Containers []struct {
				Name   string
				Rootfs struct{ UsedBytes uint64 }
			}
			EphemeralStorage struct{ UsedBytes uint64 } `json:"ephemeral-storage"`
		}
	}
	if err := json.Unmarshal([]byte(raw("stats/summary")), &summary); err != nil || summary.Node.NodeName != node {
		t.Errorf("summary: %+v, %v", summary, err)
	}
	found := false
	for _, p := range summary.Pods {
		if p.PodRef.Name == pod && p.PodRef.Namespace == ns {
			found = len(p.Containers) == 1 && p.Containers[0].Name == "busy" && p.Network != nil && len(p.Volume) > 0 && p.EphemeralStorage.UsedBytes > 0
		}
	}
	if !found {
		t.Errorf("the summary does not show pod %s: %+v", pod, summary.Pods)
	}
	for path, line := range map[string]string{
		"metrics/cadvisor": `(?m)^container_cpu_cfs_throttled_periods_total\{container="busy",.*namespace="` + ns + `",pod="worker-`,
		"metrics/resource": `(?m)^container_memory_working_set_bytes\{container="busy",namespace="` + ns + `",pod="worker-\S+"\} \d`,
		"metrics":          `(?m)^kubelet_running_pods \d`,
		"logs/":            `pods/`,
		"configz":          `"clusterDomain":"cluster.local"`,
		"pods":             `"kind":"PodList"`,
	} {
		if got := raw(path); !regexp.MustCompile(line).MatchString(got) {
			t.Errorf("%s does not show %s:\n%.2000s", path, line, got)
		}
	}
	if out, err := shared.Run(t.Context(), "kubectl", "get", "--raw", "/api/v1/nodes/"+node+"/proxy/metrics/resource", "--as", "scraper", "--as-group", "system:monitoring"); err != nil {
		t.Errorf("a scraper with nodes/metrics: %v: %s", err, out)
	}
	if out, err := shared.Run(t.Context(), "kubectl", "get", "--raw", "/api/v1/nodes/"+node+"/proxy/pods", "--as", "scraper", "--as-group", "system:monitoring"); err == nil {
		t.Errorf("a scraper reads pods: %.200s", out)
	}

	replicas := func(want string) func(context.Context) error {
		return func(ctx context.Context) error {
			out, err := shared.Run(ctx, "kubectl", "-n", ns, "get", "deployment", "worker", "-o", "jsonpath={.spec.replicas}")
			if err == nil && strings.TrimSpace(out) != want {
				status, _ := shared.Run(ctx, "kubectl", "-n", ns, "get", "hpa", "worker", "-o", "jsonpath={.status}")
				err = fmt.Errorf("%s replicas; %s", out, status)
			}
			return err
		}
	}
	wait.For(t, 90*time.Second, "the load scales the deployment up", replicas("3"))
	shared.Kubectl(t, "-n", ns, "rollout", "status", "deployment/worker", "--timeout=60s")
	for _, p := range strings.Fields(shared.Kubectl(t, "-n", ns, "get", "pods", "-l", "app=worker", "-o", "jsonpath={.items[*].metadata.name}")) {
		shared.Kubectl(t, "-n", ns, "exec", p, "--", "touch", "/tmp/idle")
	}
	wait.For(t, 90*time.Second, "without load it is scaled down", replicas("1"))
	shared.Shows(t, time.Minute, "New size: 3; reason: cpu resource utilization (percentage of request) above target", "-n", ns, "describe", "hpa", "worker")
}

// shows waits until kubectl prints what a pattern matches. A pod has no usage in its first ten
// seconds.
func shows(t *testing.T, pattern string, args ...string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	wait.For(t, time.Minute, "kubectl "+strings.Join(args, " ")+" shows "+pattern, func(ctx context.Context) error {
		out, err := shared.Run(ctx, "kubectl", args...)
		if err == nil && !re.MatchString(out) {
			err = errors.New(out)
		}
		return err
	})
}
