// Package install_test installs charts/keelson with the real helm into a cluster of `keel up`, and
// does to the control plane what its users do: scripts/chart.sh runs it with each helm.
package install_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

const chart = "../../../charts/keelson"

var (
	helmProgram = flag.String("helm", "helm", "program in bin/runtime")
	count       = flag.Int("count-of-control-planes", 0, "control planes of TestDensity")
	idle        = flag.Duration("idle", time.Minute, "how long TestDensity measures idle control planes")

	outer *cluster.Cluster
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(func() int { return run(m) })) }

func run(m *testing.M) (code int) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
			code = max(code, 1)
		}
	}
	var err error
	if outer, err = cluster.Open(); err != nil {
		fail(err)
		return code
	}
	defer func() { fail(outer.Delete()) }()
	ctx := context.Background()
	nodes := "1"
	if *count > 0 {
		nodes = fmt.Sprint(max(1, (*count+14)/15)) // 110 pods each
	}
	if _, err = outer.Up(ctx, "--nodes", nodes); err == nil {
		args := []string{"image", "load", "--home", outer.Home}
		for _, name := range []string{"apiserver", "scheduler", "controller-manager", "cloud-controller", "node", "keel"} {
			args = append(args, filepath.Join(outer.Bin, "images", name+".tar"))
		}
		_, err = outer.Run(ctx, "keel", args...)
	}
	if err != nil {
		fail(err)
		return code
	}
	return m.Run()
}

// release is an installed chart.
type release struct {
	name, namespace string
	kubeconfig      string
}

// helm runs helm on the outer cluster.
func helm(t *testing.T, args ...string) string {
	t.Helper()
	began := time.Now()
	out := outer.Must(t, *helmProgram, args...)
	t.Logf("%6.2fs  helm %s", time.Since(began).Seconds(), strings.Join(args, " "))
	return out
}

// upgrade changes values of the release; the others keep their defaults.
func (r *release) upgrade(t *testing.T, values ...string) {
	t.Helper()
	args := []string{"upgrade", r.name, chart, "--namespace", r.namespace, "--wait", "--timeout", "110s"}
	for _, v := range append(slices.Clone(settings(t)), values...) {
		args = append(args, "--set", v)
	}
	helm(t, args...)
}

const httpsPort, grpcPort = "30643", "30644"

// settings are the values by which the test reaches the control plane: a port of the node's own
// network namespace.
func settings(t *testing.T) []string {
	t.Helper()
	return []string{
		"service.type=NodePort", "service.nodePorts.https=" + httpsPort, "service.nodePorts.grpc=" + grpcPort,
		"service.outside=https://" + nodeAddress(t) + ":" + httpsPort, "service.proxies={" + nodeAddress(t) + "/8}",
	}
}

func nodeAddress(t *testing.T) string {
	t.Helper()
	return strings.Fields(outer.Kubectl(t, "get", "nodes", "-o", `jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}`))[0]
}

// install installs the release and fetches its kubeconfig.
func (r *release) install(t *testing.T, values ...string) {
	t.Helper()
	args := []string{"install", r.name, chart, "--namespace", r.namespace, "--wait", "--timeout", "110s"}
	for _, v := range append(slices.Clone(settings(t)), values...) {
		args = append(args, "--set", v)
	}
	helm(t, args...)
	r.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(r.kubeconfig, r.secret(t, "kubeconfig", "outside"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// secret returns a file of a Secret of the control plane.
func (r *release) secret(t *testing.T, what, key string) []byte {
	t.Helper()
	var s struct{ Data map[string][]byte }
	out := outer.Kubectl(t, "-n", r.namespace, "get", "secret", r.name+"-keelson-"+what, "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil || len(s.Data[key]) == 0 {
		t.Fatalf("secret %s has no %s: %v", what, key, err)
	}
	return s.Data[key]
}

// inner runs kubectl on the control plane.
func (r *release) inner(ctx context.Context, args ...string) (string, error) {
	return outer.Run(ctx, "kubectl", append([]string{"--kubeconfig", r.kubeconfig}, args...)...)
}

func (r *release) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.inner(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// voters returns the names of the members with a vote, sorted.
func (r *release) voters(t *testing.T) []string {
	t.Helper()
	args := []string{"member", "list", "--kubeconfig", r.kubeconfig, "--server", nodeAddress(t) + ":" + grpcPort}
	var names []string
	for i, line := range strings.Split(strings.TrimSpace(outer.Must(t, "keel", args...)), "\n") {
		if i > 0 {
			names = append(names, strings.Fields(line)[0])
		}
	}
	slices.Sort(names)
	return names
}

// isScaled checks that there are as many members as apiservers, and what was written before is there.
func (r *release) isScaled(t *testing.T, n int, marks ...string) {
	t.Helper()
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("%s-keelson-%d", r.name, i))
	}
	if got := r.voters(t); !slices.Equal(got, want) {
		t.Errorf("members %v, want %v", got, want)
	}
	for _, mark := range marks {
		if got := r.must(t, "get", "configmap", mark, "-o", "jsonpath={.data.a}"); got != "b" {
			t.Errorf("configmap %s: %q", mark, got)
		}
	}
}

// inventory lists every object of every listable resource but those that only record what happened.
func inventory(t *testing.T) string {
	t.Helper()
	var kinds []string
	for _, kind := range strings.Fields(outer.Kubectl(t, "api-resources", "--verbs=list", "-o", "name")) {
		if !slices.Contains([]string{"events", "events.events.k8s.io", "leases.coordination.k8s.io", "nodes.metrics.k8s.io", "pods.metrics.k8s.io"}, kind) {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return outer.Kubectl(t, "get", strings.Join(kinds, ","), "-A", "--no-headers", "--ignore-not-found",
		"-o", `custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name,UID:.metadata.uid`)
}

// isGone waits until the outer cluster has what it had before.
func isGone(t *testing.T, before string) {
	t.Helper()
	wait.For(t, time.Minute, "nothing is left of the release", func(context.Context) error {
		if after := inventory(t); after != before {
			return fmt.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		return nil
	})
}
