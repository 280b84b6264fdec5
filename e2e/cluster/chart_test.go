package cluster_test

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestChartsAreAccepted: each values file of the charts, by a server-side dry run. Files in a directory
// kubernetes have what Keelson does not serve.
func TestChartsAreAccepted(t *testing.T) {
	ns := namespace(t)
	files, err := filepath.Glob("../../charts/*/ci/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("values files: %v, %v", files, err)
	}
	for _, file := range append(files, "../../charts/keelson/values.yaml", "../../charts/demo/values.yaml") {
		chart, _, _ := strings.Cut(file, "/ci/")
		chart = strings.TrimSuffix(chart, "/values.yaml")
		manifest := shared.Must(t, "helm", "template", "x", chart, "--namespace", ns, "--values", file)
		// Dry runs store nothing, and objects may refer to what is not there yet.
		if out, err := shared.Feed(t.Context(), manifest, "kubectl", "apply", "--namespace", ns, "--dry-run=server", "--validate=strict", "-f", "-"); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}
