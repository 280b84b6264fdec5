package ha_test

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// TestEmptiedDisk removes everything that one apiserver after the other has stored, also
// its votes: each recovers by itself, and nothing is lost.
func TestEmptiedDisk(t *testing.T) {
	c := start(t)
	c.Kubectl(t, "create", "configmap", "kept", "--from-literal=a=b")
	for _, victim := range c.Apiservers(t) {
		began := time.Now()
		for _, store := range []string{"etcd", "raft"} {
			// The apiserver keeps writing: a file that it creates meanwhile keeps the directory.
			wait.For(t, time.Minute, "the store is removed", func(context.Context) error {
				return os.RemoveAll(filepath.Join(c.Home, victim.Name, store))
			})
		}
		kill(t, c, victim, syscall.SIGKILL)
		t.Logf("%s lost its disk and had recovered after %s", victim.Name, time.Since(began).Round(time.Millisecond))
		if got := c.Kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
			t.Fatalf("after %s lost its disk the ConfigMap has %q, want b", victim.Name, got)
		}
	}
}
