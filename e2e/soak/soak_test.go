package soak_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The bounds that docs/figures.md states.
const (
	maxSlope = 1.0   // MB a minute, of the sum, after the first minute
	maxIdle  = 200.0 // MB, the sum after five minutes
)

// perDeployment is how many pods one Deployment has.
const perDeployment = 500

// TestSoak: 1,000 nodes and 10,000 pods in a steady state take no more memory from
// minute to minute.
func TestSoak(t *testing.T) {
	c := start(t, "--nodes", "0", "--simulated-nodes", strconv.Itoa(*soakNodes))
	eventually(t, 2*time.Minute, "all nodes Ready", func() error {
		ready, err := c.readyNodes()
		if err == nil && ready != *soakNodes {
			err = fmt.Errorf("%d of %d nodes are Ready", ready, *soakNodes)
		}
		return err
	})
	began := time.Now()
	c.must(t, []byte(deployments(*soakPods)), "kubectl", "apply", "-f", "-")
	eventually(t, 5*time.Minute, "all pods Running", func() error { return c.running(*soakPods) })
	t.Logf("%d pods on %d nodes were Running after %.1fs", *soakPods, *soakNodes, time.Since(began).Seconds())

	each, sum := c.measure(t, time.Now())
	t.Logf("%d nodes, %d pods, at rest:\n%s", *soakNodes, *soakPods, table(each, sum))

	if err := c.running(*soakPods); err != nil {
		t.Errorf("at the end: %v", err)
	}
	if ready, err := c.readyNodes(); err != nil || ready != *soakNodes {
		t.Errorf("at the end %d of %d nodes are Ready: %v", ready, *soakNodes, err)
	}
	if got := slope(sum.points(pss)); got >= maxSlope {
		t.Errorf("memory grows by %.2f MB a minute, want less than %.0f", got, maxSlope)
	}
}

// TestIdle: what a cluster of three nodes takes that nobody uses.
func TestIdle(t *testing.T) {
	c := start(t, "--nodes", "3")
	each, sum := c.measure(t, time.Now())
	t.Logf("3 nodes, nothing to do:\n%s", table(each, sum))
	if got := sum.last().pss; got >= maxIdle {
		t.Errorf("the control plane takes %.1f MB, want less than %.0f", got, maxIdle)
	}
}

// deployments is a manifest of Deployments with so many pods together.
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

// running is nil when so many pods are ready, as the Deployments count them.
func (c *cluster) running(pods int) error {
	out, err := c.run(nil, "kubectl", "get", "deployments", "-o", "jsonpath={.items[*].status.readyReplicas}")
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
