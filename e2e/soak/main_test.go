// Package soak_test holds a cluster under load, and another one at rest, for minutes, and
// measures what its control plane takes: memory as the kernel counts it, Go's heap, and
// CPU time. It starts the programs and imports no package of theirs.
//
// It takes about twelve minutes and is not part of CI: `make soak`.
package soak_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
)

var (
	soakNodes    = flag.Int("soak.nodes", 1000, "simulated nodes of TestSoak")
	soakPods     = flag.Int("soak.pods", 10000, "pods of TestSoak")
	soakMinutes  = flag.Int("soak.minutes", 5, "minutes that each test measures its cluster, 2 at the least")
	soakProfiles = flag.String("soak.profiles", "", "directory for samples and profiles of the measured minutes; empty takes none")
	soakEvery    = flag.Duration("soak.every", time.Minute, "time between two rollouts of TestRolling")
)

// sampleEvery is the time between two samples of the services' memory.
const sampleEvery = 5 * time.Second

func TestMain(m *testing.M) { os.Exit(cluster.Main(m.Run)) }

// start starts a cluster that is deleted when the test ends.
func start(t *testing.T, args ...string) *cluster.Cluster {
	t.Helper()
	if *soakMinutes < 2 {
		t.Fatalf("-soak.minutes %d: the first minute is not measured, so want 2 at the least", *soakMinutes)
	}
	return cluster.Start(t, args...)
}

// controlPlane is the four services for whose sum docs/figures.md states a bound; what runs
// pods is not part of it. It fails unless all processes of the cluster are healthy.
func controlPlane(t *testing.T, c *cluster.Cluster) (out []cluster.Process) {
	t.Helper()
	if err := c.Healthy(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"apiserver-0", "scheduler", "controller-manager", "cloud-controller"} {
		out = append(out, c.Process(t, name))
	}
	return out
}

// nodesReady is nil when n nodes are Ready.
func nodesReady(ctx context.Context, c *cluster.Cluster, n int) error {
	out, err := c.Run(ctx, "kubectl", "get", "nodes", "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
	if ready := strings.Count(out, "True"); err == nil && ready != n {
		err = fmt.Errorf("%d of %d nodes are Ready", ready, n)
	}
	return err
}
