package soak_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"strconv"
	"testing"
	"time"
)

var heartbeatNodes = flag.Int("soak.heartbeats", 10_000, "simulated nodes of TestHeartbeats")

// maxHeartbeatCPU is the most CPU time a minute that the control plane may take to
// hear 10,000 nodes: one core.
const maxHeartbeatCPU = time.Minute

// TestHeartbeats: 10,000 nodes renew their Leases, each in calls of its own. Nothing
// of that is etcd's, so its revision stands still; that also says that no node was
// taken for silent meanwhile, since that would be written.
func TestHeartbeats(t *testing.T) {
	c := start(t, "--nodes", "0", "--simulated-nodes", strconv.Itoa(*heartbeatNodes))
	eventually(t, 2*time.Minute, "all nodes Ready", func() error {
		ready, err := c.readyNodes()
		if err == nil && ready != *heartbeatNodes {
			err = fmt.Errorf("%d of %d nodes are Ready", ready, *heartbeatNodes)
		}
		return err
	})
	// What follows the nodes' coming (their address ranges, zones) has to end first.
	quiet, since := c.etcdRevision(t), time.Now()
	eventually(t, 2*time.Minute, "etcd stands still", func() error {
		if now := c.etcdRevision(t); now != quiet {
			quiet, since = now, time.Now()
		}
		if still := time.Since(since); still < 15*time.Second {
			return fmt.Errorf("for %s", still.Round(time.Second))
		}
		return nil
	})
	renewals, began := c.leaseRevision(t), time.Now()
	each, sum := c.measure(t, began)
	t.Logf("%d nodes' heartbeats, %.0f a second:\n%s", *heartbeatNodes,
		float64(c.leaseRevision(t)-renewals)/time.Since(began).Seconds(), table(each, sum))
	if now := c.etcdRevision(t); now != quiet {
		t.Errorf("etcd's revision went from %d to %d", quiet, now)
	}
	if got := sum.perMinute(); got > maxHeartbeatCPU {
		t.Errorf("the control plane took %s of CPU time a minute, want at most %s", got, maxHeartbeatCPU)
	}
	if ready, err := c.readyNodes(); err != nil || ready != *heartbeatNodes {
		t.Errorf("at the end %d of %d nodes are Ready: %v", ready, *heartbeatNodes, err)
	}
}

// etcdRevision is the store's that holds what must last.
func (c *cluster) etcdRevision(t *testing.T) int64 {
	t.Helper()
	return c.revision(t, "/api/v1/namespaces?limit=1")
}

// leaseRevision is the store's that holds Leases.
func (c *cluster) leaseRevision(t *testing.T) int64 {
	t.Helper()
	return c.revision(t, "/apis/coordination.k8s.io/v1/leases?limit=1")
}

func (c *cluster) revision(t *testing.T, list string) int64 {
	t.Helper()
	var l struct {
		Metadata struct {
			ResourceVersion int64 `json:"resourceVersion,string"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal([]byte(c.must(t, nil, "kubectl", "get", "--raw", list)), &l); err != nil {
		t.Fatal(err)
	}
	return l.Metadata.ResourceVersion
}
