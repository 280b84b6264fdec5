// Package cluster_test uses a cluster as a user does: `keel up`, kubectl, the
// application's own addresses, kill -9. It knows no package of the services.
package cluster_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/kubernetes"
	"keelson.dev/e2e/internal/wait"
)

var (
	shared    *cluster.Cluster // of three nodes; all tests use it
	up        time.Duration    // how long its `keel up` took
	manifests string           // the directory of its nodes' static pods, which they share
)

// kubernetesDir is set to run kubectl's rows against Kubernetes: see TestKubectlRecorded.
var kubernetesDir = flag.String("kubernetes", "", "the directory of Kubernetes' programs: kubectl's rows run against it, and record what it answers")

func TestMain(m *testing.M) {
	flag.Parse()
	if *kubernetesDir != "" {
		os.Exit(runOnKubernetes(m))
	}
	os.Exit(cluster.Main(func() int { return run(m) }))
}

// runOnKubernetes runs tests against a control plane of Kubernetes with three nodes that run
// nothing, which shared stands for.
func runOnKubernetes(m *testing.M) int {
	ctx := context.Background()
	var plane *kubernetes.ControlPlane
	var err error
	if shared, err = cluster.Open(); err == nil {
		plane, err = kubernetes.Start(ctx, *kubernetesDir, shared.Home)
		defer func() { _ = errors.Join(plane.Stop(), os.RemoveAll(shared.Cache)) }()
	}
	for i := range 3 {
		if err == nil {
			_, err = shared.Feed(ctx, fmt.Sprintf("{apiVersion: v1, kind: Node, metadata: {name: node-%d}}", i), "kubectl", "create", "-f", "-")
		}
	}
	if err == nil {
		// It is created a moment after the control plane is ready.
		err = wait.Until(ctx, time.Minute, func(ctx context.Context) error {
			_, err := shared.Run(ctx, "kubectl", "get", "serviceaccount", "default")
			return err
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", errors.Join(err, errors.New("no control plane of Kubernetes")))
		return 1
	}
	return m.Run()
}

func run(m *testing.M) (code int) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
			code = max(code, 1)
		}
	}
	var err error
	if shared, err = cluster.Open(); err != nil {
		fail(err)
		return code
	}
	defer func() { fail(shared.Delete()) }()
	ctx := context.Background()
	began := time.Now()
	if manifests, err = os.MkdirTemp("/var/tmp", "keelson-e2e-manifests-*"); err != nil {
		fail(err)
		return code
	}
	defer func() { fail(os.RemoveAll(manifests)) }()
	_, err = shared.Up(ctx, "--nodes", "3", "--node-flag", "pod-manifest-path="+manifests)
	up = time.Since(began)
	if err == nil {
		err = shared.LoadImages(ctx, "busybox", "nginx", "shop", "postgres", "redis")
	}
	if err != nil {
		fail(err)
		return code
	}
	code = m.Run()
	fail(shared.Unexpected(ctx))
	return code
}

// namespace creates a namespace for the test and deletes it when the test ends.
func namespace(t *testing.T) string {
	t.Helper()
	name := "e2e-" + strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ".", "-").Replace(t.Name()))
	name = strings.TrimRight(name[:min(len(name), 50)], "-")
	shared.Kubectl(t, "create", "namespace", name)
	cleanup(t, "kubectl", "delete", "namespace", name, "--wait=false")
	wait.For(t, time.Minute, "the namespace has its default service account", func(ctx context.Context) error {
		_, err := shared.Run(ctx, "kubectl", "-n", name, "get", "serviceaccount", "default")
		return err
	})
	return name
}

// cleanup runs a command when the test ends; it may fail.
func cleanup(t *testing.T, program string, args ...string) {
	t.Cleanup(func() { _, _ = shared.Run(context.Background(), program, args...) })
}

// processes are those of the shared cluster.
func processes(t *testing.T) []cluster.Process {
	t.Helper()
	list, err := shared.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}
