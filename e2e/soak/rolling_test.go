package soak_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// The bounds of a cluster that is left alone for hours. They are judged after warmUp, in
// runs that are long enough for a slope to mean something.
const (
	warmUp       = 30 * time.Minute
	judged       = 90 * time.Minute
	maxRolling   = 1.0 // MB of PSS an hour, for each service
	maxRoutines  = 5.0 // goroutines an hour, for each service
	maxEtcdSlope = 8.0 // MB of etcd's file an hour
)

// traceEvery is the time between two figures of memory that are printed.
const traceEvery = 10 * time.Minute

// workloads of each kind; 50 together.
var workloads = []struct {
	kind  string
	count int
}{{"Deployment", 20}, {"StatefulSet", 10}, {"DaemonSet", 5}, {"ReplicaSet", 5}, {"CronJob", 5}, {"Job", 5}}

// rolling is one measurement of a service.
type rolling struct {
	sample
	routines float64
}

// TestRolling leaves a cluster alone with 50 workloads of all kinds that roll every minute,
// for -soak.minutes. No service may log an error or be restarted; in runs of 90 minutes or
// more neither memory nor goroutines nor etcd's file may grow.
func TestRolling(t *testing.T) {
	c := start(t, "--nodes", "0", "--simulated-nodes", "10")
	wait.For(t, 2*time.Minute, "all nodes are Ready", func(ctx context.Context) error { return nodesReady(ctx, c, 10) })
	c.Apply(t, manifest(0))
	services := controlPlane(t, c)
	seen := make([][]rolling, len(services))
	var files []point
	began := time.Now()
	end := time.Duration(*soakMinutes) * time.Minute
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	rolls := 0
	for at := time.Duration(0); at <= end; at = time.Since(began) {
		if at >= time.Duration(rolls+1)**soakEvery {
			rolls++
			c.Kubectl(t, "delete", "jobs", "-l", "soak=rolling", "--wait=false")
			c.Kubectl(t, "delete", "replicasets", "-l", "soak=rolling-set", "--wait=false")
			wait.For(t, time.Minute, "the Jobs and ReplicaSets are gone", func(ctx context.Context) error { return gone(ctx, c) })
			c.Apply(t, manifest(rolls))
		}
		for i, s := range services {
			p, err := take(c, s, at)
			if err != nil {
				t.Fatalf("%s: %v", s.Name, err)
			}
			routines, err := metric(c, s, "go_goroutines")
			if err != nil {
				t.Fatal(err)
			}
			seen[i] = append(seen[i], rolling{p, routines})
		}
		size, err := etcdFile(c)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, point{at.Minutes(), size})
		<-tick.C
	}
	wait.For(t, 2*time.Minute, "all pods of the last rollout are ready", func(ctx context.Context) error { return settled(ctx, c) })
	for i, s := range controlPlane(t, c) {
		if s.PID != services[i].PID {
			t.Errorf("%s was restarted: pid %d, then %d", s.Name, services[i].PID, s.PID)
		}
	}
	report(t, c, services, seen, files, rolls)
}

// report prints what was measured, and judges it.
func report(t *testing.T, c *cluster.Cluster, services []cluster.Process, seen [][]rolling, files []point, rolls int) {
	t.Helper()
	long := time.Duration(*soakMinutes)*time.Minute >= judged
	from := 0.0
	if long {
		from = warmUp.Minutes()
	}
	after := func(points []point) (out []point) {
		for _, p := range points {
			if p.x >= from {
				out = append(out, p)
			}
		}
		return out
	}
	hourly := func(points []point) float64 { return 60 * slope(after(points)) }
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "SERVICE\tPSS\tSLOPE\tGOROUTINES\tSLOPE\tCPU\tERRORS\t")
	for i, s := range services {
		var memory, routines []point
		for _, p := range seen[i] {
			memory = append(memory, point{p.at.Minutes(), p.pss})
			routines = append(routines, point{p.at.Minutes(), p.routines})
		}
		errs, err := errorsIn(s.Log)
		if err != nil {
			t.Error(err)
		}
		first, last := seen[i][0], seen[i][len(seen[i])-1]
		fmt.Fprintf(w, "%s\t%.1f MB\t%+.2f MB/h\t%.0f\t%+.1f/h\t%.2f s/min\t%d\t\n", s.Name, last.pss, hourly(memory), last.routines, hourly(routines),
			(last.cpu-first.cpu).Seconds()/(last.at-first.at).Minutes(), len(errs))
		for _, line := range errs[:min(len(errs), 5)] {
			t.Errorf("%s logged an error: %s", s.Name, line)
		}
		if got := hourly(memory); long && got >= maxRolling {
			t.Errorf("%s grows by %.2f MB an hour, want less than %.0f", s.Name, got, maxRolling)
		}
		if got := hourly(routines); long && got >= maxRoutines {
			t.Errorf("%s gets %.1f goroutines an hour, want less than %.0f", s.Name, got, maxRoutines)
		}
	}
	_ = w.Flush()
	most := 0.0
	for _, p := range files {
		most = max(most, p.y)
	}
	for i, s := range services {
		var at []string
		for _, p := range seen[i] {
			if p.at >= time.Duration(len(at))*traceEvery {
				at = append(at, fmt.Sprintf("%.0f", p.pss))
			}
		}
		t.Logf("%s, MB of PSS every %.0f minutes: %s", s.Name, traceEvery.Minutes(), strings.Join(at, " "))
	}
	t.Logf("%d rollouts in %d minutes:\n%setcd's file: %.1f MB at most, %+.1f MB/h", rolls, *soakMinutes, out.String(), most, hourly(files))
	if got := hourly(files); long && got >= maxEtcdSlope {
		t.Errorf("etcd's file grows by %.1f MB an hour, want less than %.0f", got, maxEtcdSlope)
	}
	if !long {
		t.Logf("slopes are judged in runs of %.0f minutes or more (-soak.minutes)", judged.Minutes())
	}
}

// manifest is all workloads, as of one rollout.
func manifest(roll int) string {
	var out strings.Builder
	for _, w := range workloads {
		for i := range w.count {
			name := fmt.Sprintf("%s-%d", strings.ToLower(w.kind), i)
			label := "rolling"
			template := fmt.Sprintf(`{metadata: {labels: {app: %s}, annotations: {roll: "%d"}}, spec: {containers: [{name: web, image: "registry.example/web:1", resources: {requests: {cpu: 10m}}}]}}`, name, roll)
			selector := fmt.Sprintf("{matchLabels: {app: %s}}", name)
			group, spec := "apps/v1", ""
			switch w.kind {
			case "Deployment":
				spec = fmt.Sprintf("{replicas: 3, selector: %s, template: %s}", selector, template)
			case "ReplicaSet":
				label, spec = "rolling-set", fmt.Sprintf("{replicas: 2, selector: %s, template: %s}", selector, template)
			case "StatefulSet":
				spec = fmt.Sprintf("{replicas: 3, serviceName: none, podManagementPolicy: Parallel, selector: %s, template: %s}", selector, template)
			case "DaemonSet":
				spec = fmt.Sprintf("{selector: %s, template: %s}", selector, template)
			case "Job", "CronJob":
				group = "batch/v1"
				template = strings.Replace(template, "spec: {", "spec: {restartPolicy: Never, ", 1)
				spec = fmt.Sprintf("{ttlSecondsAfterFinished: 30, activeDeadlineSeconds: 30, template: %s}", template)
				if w.kind == "CronJob" {
					spec = fmt.Sprintf(`{schedule: "* * * * *", concurrencyPolicy: Replace, jobTemplate: {spec: %s}}`, spec)
				}
			}
			fmt.Fprintf(&out, "---\napiVersion: %s\nkind: %s\nmetadata: {name: %s, labels: {soak: %s}}\nspec: %s\n", group, w.kind, name, label, spec)
		}
	}
	return out.String()
}

// gone returns nil once the Jobs and ReplicaSets of the last rollout, which are deleted
// and created anew instead of updated, are deleted.
func gone(ctx context.Context, c *cluster.Cluster) error {
	out, err := c.Run(ctx, "kubectl", "get", "jobs,replicasets", "-l", "soak in (rolling,rolling-set)", "-o", "name")
	if err == nil && strings.TrimSpace(out) != "" {
		err = errors.New("left: " + strings.Join(strings.Fields(out), " "))
	}
	return err
}

// settled returns nil once every Deployment, StatefulSet and DaemonSet has the replicas of
// its spec, updated and ready.
func settled(ctx context.Context, c *cluster.Cluster) error {
	for kind, path := range map[string]string{
		"deployments":  `{.metadata.name}{" "}{.spec.replicas}{" "}{.status.readyReplicas}{" "}{.status.updatedReplicas}`,
		"statefulsets": `{.metadata.name}{" "}{.spec.replicas}{" "}{.status.readyReplicas}{" "}{.status.updatedReplicas}`,
		"daemonsets":   `{.metadata.name}{" "}{.status.desiredNumberScheduled}{" "}{.status.numberReady}{" "}{.status.updatedNumberScheduled}`,
	} {
		out, err := c.Run(ctx, "kubectl", "get", kind, "-o", `jsonpath={range .items[*]}`+path+`{"\n"}{end}`)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) != 4 || f[1] != f[2] || f[1] != f[3] {
				return fmt.Errorf("%s: wanted, ready, updated: %s", kind, strings.TrimSpace(line))
			}
		}
	}
	return nil
}

// metric is a gauge of a service without labels.
func metric(c *cluster.Cluster, s cluster.Process, name string) (float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	body, err := ops(ctx, c, s, "/metrics")
	if err != nil {
		return 0, err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s: %w", s.Name, name, lines.Err())
}

// etcdFile is the size of the apiserver's etcd file, in MiB.
func etcdFile(c *cluster.Cluster) (float64, error) {
	files, err := filepath.Glob(filepath.Join(c.Home, "apiserver-0", "etcd", "member", "snap", "db"))
	if err != nil || len(files) != 1 {
		return 0, fmt.Errorf("etcd's file in %s: %d found: %w", c.Home, len(files), err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / (1 << 20), nil
}

// errorsIn returns the lines of a log that are errors.
func errorsIn(path string) (out []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.Contains(lines.Text(), " level=ERROR ") {
			out = append(out, lines.Text())
		}
	}
	return out, lines.Err()
}
