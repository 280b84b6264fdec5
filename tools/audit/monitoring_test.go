package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// monitoring is the directory with what is given to Prometheus and Grafana.
const monitoring = "../../deploy/monitoring"

// fromLibraries are metrics that client_golang registers.
var fromLibraries = []string{"process_resident_memory_bytes", "go_goroutines", "process_cpu_seconds_total"}

// queries returns the queries of the dashboard and of the alerts, by title.
func queries(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	parse(t, "dashboard.json", func(b []byte) error { return json.Unmarshal(b, &dashboard) })
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			out[p.Title+" "+target.Expr] = target.Expr
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	parse(t, "alerts.yaml", func(b []byte) error { return yaml.UnmarshalStrict(b, &struct{ Groups any }{}) })
	parse(t, "alerts.yaml", func(b []byte) error { return yaml.Unmarshal(b, &rules) })
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			out[r.Alert] = r.Expr
			if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["action"] == "" {
				t.Errorf("alert %s needs a severity, a summary and an action", r.Alert)
			}
		}
	}
	return out
}

func parse(t *testing.T, name string, into func([]byte) error) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(monitoring, name))
	if err == nil {
		err = into(b)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

var (
	grouping = regexp.MustCompile(`by \([^)]*\)`)
	braces   = regexp.MustCompile(`\{[^}]*\}`)
	word     = regexp.MustCompile(`[a-z][a-z0-9]*(_[a-z0-9]+)+`)
	quoted   = regexp.MustCompile(`"([a-z][a-z0-9]*(?:_[a-z0-9]+)+)"`)
)

// TestMonitoringMetrics checks that each metric that a query names is defined in a service.
func TestMonitoringMetrics(t *testing.T) {
	defined := map[string]bool{}
	for _, name := range fromLibraries {
		defined[name] = true
	}
	err := filepath.WalkDir("../../services", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range quoted.FindAllStringSubmatch(string(b), -1) {
			defined[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	all := queries(t)
	if len(all) < 30 {
		t.Errorf("%d queries only", len(all))
	}
	for title, query := range all {
		names := word.FindAllString(braces.ReplaceAllString(grouping.ReplaceAllString(query, ""), ""), -1)
		found := 0
		for _, name := range names {
			if name == "histogram_quantile" {
				continue
			}
			found++
			if base := strings.TrimSuffix(name, "_bucket"); !defined[name] && !defined[base] {
				t.Errorf("%s: no service has the metric %s", title, name)
			}
		}
		if found == 0 {
			t.Errorf("%s names no metric: %s", title, query)
		}
	}
}
