package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// workloadsManifest is one workload of each kind that has no test of its own.
const workloadsManifest = `
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  timeZone: Asia/Kolkata
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: ["true"]}]}}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"]}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"], volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 2
  selector: {app: old}
  template:
    metadata: {labels: {app: old}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "keelson.dev/demo/busybox:1", command: [sleep, "3600"]}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: old}
spec: {minAvailable: 1, selector: {matchLabels: {app: old}}}
`

// TestWorkloads runs the other kinds of workloads: daemons on every node, a database
// that keeps its names and its data, and jobs by the clock.
func TestWorkloads(t *testing.T) {
	ns := namespace(t)
	shared.Apply(t, workloadsManifest, "-n", ns)
	kubectl := func(args ...string) string { return shared.Kubectl(t, append([]string{"-n", ns}, args...)...) }
	rolledOut := func(object string) { kubectl("rollout", "status", object, "--timeout=120s") }

	rolledOut("daemonset/agent")
	on := strings.Fields(kubectl("get", "pods", "-l", "app=agent", "-o", "jsonpath={.items[*].spec.nodeName}"))
	nodes := map[string]bool{}
	for _, n := range on {
		nodes[n] = true
	}
	if len(on) != 3 || len(nodes) != 3 {
		t.Errorf("daemons run on %v, want one on each of three nodes", on)
	}
	kubectl("set", "env", "daemonset/agent", "V=2")
	rolledOut("daemonset/agent")
	kubectl("rollout", "undo", "daemonset/agent")
	rolledOut("daemonset/agent")
	if got := kubectl("get", "pods", "-l", "app=agent", "-o", "jsonpath={.items[*].spec.containers[0].env}"); strings.Contains(got, "V") {
		t.Errorf("after undo the daemons have %s", got)
	}

	rolledOut("statefulset/db")
	for _, pod := range []string{"db-0", "db-1", "db-2"} {
		kubectl("exec", pod, "--", "sh", "-c", "hostname > /data/name")
	}
	before := kubectl("get", "pod", "db-1", "-o", "jsonpath={.metadata.uid}")
	kubectl("delete", "pod", "db-1")
	rolledOut("statefulset/db")
	if after := kubectl("get", "pod", "db-1", "-o", "jsonpath={.metadata.uid}"); after == before {
		t.Error("db-1 is still the pod that was deleted")
	}
	if got := strings.TrimSpace(kubectl("exec", "db-1", "--", "cat", "/data/name")); got != "db-1" {
		t.Errorf("the volume of db-1 has %q", got)
	}
	kubectl("set", "env", "statefulset/db", "V=2")
	rolledOut("statefulset/db")
	kubectl("scale", "statefulset/db", "--replicas=1")
	shows := func(want string, args ...string) {
		t.Helper()
		wait.For(t, time.Minute, fmt.Sprintf("kubectl %s prints %q", strings.Join(args, " "), want), func(ctx context.Context) error {
			got, err := shared.Run(ctx, "kubectl", append([]string{"-n", ns}, args...)...)
			if err == nil && got != want {
				err = fmt.Errorf("it prints %q", got)
			}
			return err
		})
	}
	shows("db-0", "get", "pods", "-l", "app=db", "-o", "jsonpath={.items[*].metadata.name}")
	if got := len(strings.Fields(kubectl("get", "pvc", "-o", "name"))); got != 3 {
		t.Errorf("%d claims are left, want all three", got)
	}

	// Healthy pods, and how many of them may be evicted.
	budget := []string{"get", "pdb", "old", "-o", "jsonpath={.status.currentHealthy} {.status.disruptionsAllowed}"}
	shows("2 1", budget...)
	kubectl("scale", "rc/old", "--replicas=1")
	shows("1 0", budget...)

	wait.For(t, 2*time.Minute, "the minute's job is complete", func(ctx context.Context) error {
		got, err := shared.Run(ctx, "kubectl", "-n", ns, "get", "jobs", "-o", "jsonpath={.items[*].status.succeeded}")
		if err == nil && got == "" {
			err = fmt.Errorf("no job has succeeded")
		}
		return err
	})
	at := kubectl("get", "jobs", "-o", `jsonpath={.items[0].metadata.annotations.batch\.kubernetes\.io/cronjob-scheduled-timestamp}`)
	if !strings.HasSuffix(at, ":00+05:30") {
		t.Errorf("the job was scheduled for %q, want a full minute in the zone of India", at)
	}
}
