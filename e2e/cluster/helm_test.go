package cluster_test

import (
	"strings"
	"testing"
)

// TestHelm: install with a hook, test, upgrade, roll back and uninstall, each
// waiting for what it made.
func TestHelm(t *testing.T) {
	ns := namespace(t)
	helm := func(args ...string) string {
		t.Helper()
		return shared.Must(t, "helm", append(args, "--namespace", ns)...)
	}
	page := func() string {
		t.Helper()
		helm("test", "page")
		return shared.Kubectl(t, "-n", ns, "get", "configmap", "page", "-o", `jsonpath={.data.index\.html}`)
	}
	helm("install", "page", "testdata/chart", "--wait", "--timeout", "60s")
	if text := page(); text != "first" {
		t.Errorf("installed: the page says %q", text)
	}
	helm("upgrade", "page", "testdata/chart", "--set", "text=second,replicas=3", "--wait", "--timeout", "60s")
	if text := page(); text != "second" {
		t.Errorf("upgraded: the page says %q", text)
	}
	if n := shared.Kubectl(t, "-n", ns, "get", "deployment", "page", "-o", "jsonpath={.status.readyReplicas}"); n != "3" {
		t.Errorf("helm upgrade --wait returned with %s ready replicas, want 3", n)
	}
	helm("rollback", "page", "1", "--wait", "--timeout", "60s")
	if text := page(); text != "first" {
		t.Errorf("rolled back: the page says %q", text)
	}
	if out := helm("history", "page", "-o", "json"); strings.Count(out, `"revision"`) != 3 {
		t.Errorf("history: %s", out)
	}
	helm("uninstall", "page", "--wait", "--timeout", "60s")
	if left := shared.Kubectl(t, "-n", ns, "get", "deployment/page", "service/page", "configmap/page", "--ignore-not-found", "-o", "name"); left != "" {
		t.Errorf("helm uninstall --wait left %s", left)
	}
}
