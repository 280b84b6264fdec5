package ha_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestEmptiedDisk takes everything from one apiserver after the other, also what it
// had voted: each comes back by itself, and nothing is lost.
func TestEmptiedDisk(t *testing.T) {
	c := start(t)
	if out, err := c.try("kubectl", "create", "configmap", "kept", "--from-literal=a=b"); err != nil {
		t.Fatal(out)
	}
	list, err := c.apiservers()
	if err != nil {
		t.Fatal(err)
	}
	for _, victim := range list {
		began := time.Now()
		for _, store := range []string{"etcd", "raft"} {
			// The apiserver goes on writing: a file that comes meanwhile keeps its directory.
			if err := until(time.Minute, func() (bool, error) {
				err := os.RemoveAll(filepath.Join(c.home, victim.Name, store))
				return err == nil, err
			}); err != nil {
				t.Fatal(err)
			}
		}
		c.kill(victim)
		t.Logf("%s lost its disk and was whole after %s", victim.Name, time.Since(began).Round(time.Millisecond))
		if out, err := c.try("kubectl", "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); err != nil || out != "b" {
			t.Fatalf("after %s lost its disk: %v %q", victim.Name, err, out)
		}
	}
}
