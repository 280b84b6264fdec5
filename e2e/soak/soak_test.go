package soak_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// The bounds that docs/figures.md states for the control plane as a whole.
const (
	maxSlope = 1.0   // MB a minute, after the first minute
	maxIdle  = 200.0 // MB, after five minutes
)

// perDeployment is how many pods one Deployment has.
const perDeployment = 500

// TestSoak: the memory that 1,000 nodes and 10,000 pods take in a steady state does not
// grow.
func TestSoak(t *testing.T) {
	c := start(t, "--nodes", "0", "--simulated-nodes", strconv.Itoa(*soakNodes))
	wait.For(t, 2*time.Minute, "all nodes are Ready", func(ctx context.Context) error { return nodesReady(ctx, c, *soakNodes) })
	began := time.Now()
	c.Apply(t, deployments(*soakPods))
	wait.For(t, 5*time.Minute, "all pods are ready", func(ctx context.Context) error { return podsReady(ctx, c, *soakPods) })
	t.Logf("%d pods on %d nodes were Running after %.1fs", *soakPods, *soakNodes, time.Since(began).Seconds())

	each, sum := measure(t, c, time.Now())
	t.Logf("%d nodes, %d pods, at rest:\n%s", *soakNodes, *soakPods, table(each, sum))

	if err := podsReady(t.Context(), c, *soakPods); err != nil {
		t.Errorf("at the end: %v", err)
	}
	if err := nodesReady(t.Context(), c, *soakNodes); err != nil {
		t.Errorf("at the end: %v", err)
	}
	if got := slope(sum.points(pss)); got >= maxSlope {
		t.Errorf("memory grows by %.2f MB a minute, want less than %.0f", got, maxSlope)
	}
}

// TestIdle measures a cluster of three nodes that is not used.
func TestIdle(t *testing.T) {
	c := start(t, "--nodes", "3")
	each, sum := measure(t, c, time.Now())
	t.Logf("3 nodes, nothing to do:\n%s", table(each, sum))
	if got := sum.last().pss; got >= maxIdle {
		t.Errorf("the control plane takes %.1f MB, want less than %.0f", got, maxIdle)
	}
}

// deployments is a manifest of Deployments that have this many pods together.
func deployments(pods int) string {
	var out strings.Builder
	for i := 0; pods > 0; i++ {
		n := min(pods, perDeployment)
		pods -= n
		fmt.Fprintf(&out, `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: soak-%[1]d, labels: {app: soak-%[1]d}}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: soak-%[1]d}}
  template:
    metadata: {labels: {app: soak-%[1]d, tier: web}}
    spec:
      containers:
      - name: web
        image: registry.example/web:1.2.3
        ports: [{containerPort: 8080}]
        env: [{name: MODE, value: production}]
        resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {memory: 256Mi}}
`, i, n)
	}
	return out.String()
}

// podsReady is nil when this many pods are ready, as the Deployments count them.
func podsReady(ctx context.Context, c *cluster.Cluster, pods int) error {
	out, err := c.Run(ctx, "kubectl", "get", "deployments", "-o", "jsonpath={.items[*].status.readyReplicas}")
	if err != nil {
		return err
	}
	ready := 0
	for _, s := range strings.Fields(out) {
		n, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		ready += n
	}
	if ready != pods {
		return fmt.Errorf("%d of %d pods are ready", ready, pods)
	}
	return nil
}
