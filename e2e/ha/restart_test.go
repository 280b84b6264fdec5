package ha_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestAllStopAndStart stops every process, and starts them again: what was written
// is there, and served soon.
func TestAllStopAndStart(t *testing.T) {
	c := start(t)
	if out, err := c.try("kubectl", "create", "configmap", "kept", "--from-literal=a=b"); err != nil {
		t.Fatal(out)
	}
	if out, err := c.try("keel", "down", "--home", c.home); err != nil {
		t.Fatalf("keel down: %v\n%s", err, out)
	}
	began := time.Now()
	out, err := c.try("keel", "up", "--home", c.home)
	if err != nil {
		t.Fatalf("keel up: %v\n%s", err, out)
	}
	out, err = c.try("kubectl", "get", "configmap", "kept", "-o", "jsonpath={.data.a}")
	took := time.Since(began)
	if err != nil || out != "b" {
		t.Fatalf("after all had stopped: %v, %q", err, out)
	}
	t.Logf("served again after %s", took.Round(time.Millisecond))
	if took > 5*time.Second {
		t.Errorf("served again after %s, want 5 s at most", took)
	}
	if err := until(time.Minute, func() (bool, error) {
		list, err := c.processes()
		for _, p := range list {
			if !p.Healthy {
				err = errors.Join(err, fmt.Errorf("%s: %s", p.Name, p.Reason))
			}
		}
		return err == nil, err
	}); err != nil {
		t.Error(err)
	}
	if out, err := c.try("kubectl", "get", "--raw", "/readyz"); err != nil || !strings.Contains(out, "ok") {
		t.Errorf("readyz: %v %s", err, out)
	}
}
