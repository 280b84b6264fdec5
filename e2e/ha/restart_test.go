package ha_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/pace"
	"keelson.dev/e2e/internal/wait"
)

// TestAllStopAndStart stops every process and starts them again: what was written is
// there, and is served within 5 s.
func TestAllStopAndStart(t *testing.T) {
	c := start(t)
	c.Kubectl(t, "create", "configmap", "kept", "--from-literal=a=b")
	c.Keel(t, "down")
	clock, began := pace.Start(t), time.Now()
	c.Keel(t, "up")
	got := c.Kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.a}")
	took, given := time.Since(began), clock.Since(began)
	if got != "b" {
		t.Fatalf("after all had stopped the ConfigMap has %q, want b", got)
	}
	t.Logf("served again after %s", took.Round(time.Millisecond))
	if given > 5*time.Second {
		t.Errorf("served again after %s, of which the machine gave %s; want 5 s at most", took, given)
	}
	wait.For(t, time.Minute, "all processes are healthy", func(ctx context.Context) error { return c.Healthy(ctx, "") })
	if out := c.Kubectl(t, "get", "--raw", "/readyz"); !strings.Contains(out, "ok") {
		t.Errorf("readyz: %s", out)
	}
}
