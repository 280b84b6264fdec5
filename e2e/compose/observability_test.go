package compose_test

import (
	"bufio"
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// testObservability checks of the overlay what can be checked without its images:
// docker-compose reads both files, every file of it parses, what the files name of
// each other exists, and the running services have every metric that the dashboard
// asks for.
func testObservability(t *testing.T, e *engine) {
	const source = "../../deploy/compose/observability"
	copyFile(t, source+".yaml", e.path("compose", "observability.yaml"))
	var project struct {
		Services map[string]struct {
			Image       string            `json:"image"`
			Environment map[string]string `json:"environment"`
			Volumes     []string          `json:"volumes"`
		} `json:"services"`
	}
	if err := yaml.Unmarshal([]byte(e.compose(t, "-f", "docker-compose.yaml", "-f", "observability.yaml", "config")), &project); err != nil {
		t.Fatal(err)
	}
	for name, s := range project.Services {
		ours := strings.HasPrefix(s.Image, "keelson.dev/")
		if ours && s.Environment["KEELSON_OPS_ADDRESS"] == "127.0.0.1:9090" && name != "balancer" {
			t.Errorf("Prometheus cannot reach %s", name)
		}
		if !ours && (!strings.Contains(s.Image, ":") || strings.HasSuffix(s.Image, ":latest")) {
			t.Errorf("%s: the image %q is not pinned", name, s.Image)
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if i := strings.Index(from, "/observability/"); i >= 0 {
				if _, err := os.Stat(source + "/../" + from[i:]); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	var scraped struct {
		ScrapeConfigs []struct {
			DNS []struct{ Names []string } `json:"dns_sd_configs"`
		} `json:"scrape_configs"`
	}
	err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var anything map[string]any
		if err := yaml.Unmarshal(data, &anything); err != nil || len(anything) == 0 {
			t.Errorf("%s: %v", path, err)
		}
		if filepath.Base(path) == "prometheus.yaml" {
			return yaml.Unmarshal(data, &scraped)
		}
		return nil
	})
	if err != nil || len(scraped.ScrapeConfigs) == 0 || len(scraped.ScrapeConfigs[0].DNS) == 0 {
		t.Fatalf("prometheus.yaml scrapes nothing by name: %v", err)
	}
	have := map[string]bool{"up": true}
	for _, name := range scraped.ScrapeConfigs[0].DNS[0].Names {
		for _, c := range e.of(t, name) {
			for metric := range metrics(t, c) {
				have[metric] = true
			}
		}
	}
	asked := dashboardMetrics(t, source+"/grafana/dashboards/keelson.json")
	if len(asked) < 15 {
		t.Errorf("the dashboard asks for %d metrics only: %v", len(asked), asked)
	}
	for metric := range asked {
		if !have[metric] {
			t.Errorf("the dashboard asks for %s, which no service has", metric)
		}
	}
}

// metrics are the names of the series that a container serves.
func metrics(t *testing.T, c container) map[string]bool {
	t.Helper()
	text, err := fetch(c.State.PID, http.MethodGet, "http://127.0.0.1:9090/metrics", nil)
	if err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	out := map[string]bool{}
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if line := lines.Text(); line != "" && line[0] != '#' {
			out[line[:strings.IndexAny(line, "{ ")]] = true
		}
	}
	return out
}

// selector is a name with what selects series, a range, or the end of an argument
// after it; functions and labels have other things there.
var selector = regexp.MustCompile(`\b([a-z][a-z0-9_]*)(\{|\[|\))`)

// dashboardMetrics are the names in a dashboard's queries.
func dashboardMetrics(t *testing.T, file string) map[string]bool {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			// "sum by (a, b) (…)": the labels are no series.
			expr := regexp.MustCompile(`by \([^)]*\)`).ReplaceAllString(target.Expr, "")
			found := selector.FindAllStringSubmatch(expr, -1)
			if len(found) == 0 {
				t.Errorf("%s: no metric in %s", p.Title, target.Expr)
			}
			for _, m := range found {
				out[m[1]] = true
			}
		}
	}
	return out
}
