package soak_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strconv"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

var heartbeatNodes = flag.Int("soak.heartbeats", 10_000, "simulated nodes of TestHeartbeats")

// maxHeartbeatCPU is the most CPU time a minute that the control plane may take for the
// heartbeats of 10,000 nodes: one core.
const maxHeartbeatCPU = time.Minute

// TestHeartbeats: 10,000 nodes renew their Leases, each in calls of its own. None of that
// goes to etcd, so its revision stays; that also shows that no node was taken for lost
// meanwhile, since that would be written.
func TestHeartbeats(t *testing.T) {
	c := start(t, "--nodes", "0", "--simulated-nodes", strconv.Itoa(*heartbeatNodes))
	wait.For(t, 2*time.Minute, "all nodes are Ready", func(ctx context.Context) error { return nodesReady(ctx, c, *heartbeatNodes) })
	// The writes that new nodes cause (their address ranges, zones) have to end first.
	quiet, since := revision(t, c, etcdList), time.Now()
	wait.For(t, 2*time.Minute, "etcd's revision stays for 15 s", func(context.Context) error {
		if now := revision(t, c, etcdList); now != quiet {
			quiet, since = now, time.Now()
		}
		if stays := time.Since(since); stays < 15*time.Second {
			return fmt.Errorf("it stays for %s", stays.Round(time.Second))
		}
		return nil
	})
	renewals, began := revision(t, c, leaseList), time.Now()
	each, sum := measure(t, c, began)
	t.Logf("%d nodes' heartbeats, %.0f a second:\n%s", *heartbeatNodes,
		float64(revision(t, c, leaseList)-renewals)/time.Since(began).Seconds(), table(each, sum))
	if now := revision(t, c, etcdList); now != quiet {
		t.Errorf("etcd's revision went from %d to %d", quiet, now)
	}
	if got := sum.perMinute(); got > maxHeartbeatCPU {
		t.Errorf("the control plane took %s of CPU time a minute, want at most %s", got, maxHeartbeatCPU)
	}
	if err := nodesReady(t.Context(), c, *heartbeatNodes); err != nil {
		t.Errorf("at the end: %v", err)
	}
}

// Lists whose resource version is the revision of the store: etcd's, and that of the store
// that holds Leases.
const (
	etcdList  = "/api/v1/namespaces?limit=1"
	leaseList = "/apis/coordination.k8s.io/v1/leases?limit=1"
)

// revision is the resource version of a list.
func revision(t *testing.T, c *cluster.Cluster, list string) int64 {
	t.Helper()
	var l struct {
		Metadata struct {
			ResourceVersion int64 `json:"resourceVersion,string"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal([]byte(c.Kubectl(t, "get", "--raw", list)), &l); err != nil {
		t.Fatal(err)
	}
	return l.Metadata.ResourceVersion
}
