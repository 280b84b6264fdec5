// Package cluster_test uses a cluster as a user does: `keel up`, kubectl, the
// application's own addresses, kill -9. It knows no package of the services.
package cluster_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

var (
	shared *cluster.Cluster // of three nodes; all tests use it
	up     time.Duration    // how long its `keel up` took
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
	if shared, err = cluster.Open(); err != nil {
		fail(err)
		return code
	}
	defer func() { fail(shared.Delete()) }()
	ctx := context.Background()
	began := time.Now()
	_, err = shared.Up(ctx, "--nodes", "3")
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
