package ha_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// TestExecThroughAnyApiserver cuts a node off from one apiserver: requests to that one
// reach the node through the others. Before, each of them knows the whole trace of a pod.
func TestExecThroughAnyApiserver(t *testing.T) {
	c := start(t)
	c.Keel(t, "up", "--nodes", "1")
	if err := c.LoadImages(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, "run", "box", "--image=keelson.dev/demo/busybox:1", `--overrides={"spec":{"nodeName":"node-0"}}`, "--command", "--", "sleep", "3600")
	c.Kubectl(t, "wait", "pod/box", "--for=condition=Ready", "--timeout=60s")
	echo := func(ctx context.Context, p cluster.Process) error {
		out, err := c.Run(ctx, "kubectl", "--server", "https://"+p.HTTPS, "exec", "box", "--", "echo", "hello")
		if err == nil && strings.TrimSpace(out) != "hello" {
			err = fmt.Errorf("exec through %s printed %q", p.Name, out)
		}
		return err
	}
	list := c.Apiservers(t)
	for _, p := range list {
		if err := echo(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	tracesAgree(t, c, "default", "box")
	lost := list[1]
	host, _, _ := strings.Cut(lost.HTTPS, ":")
	in := func(args ...string) {
		t.Helper()
		args = append([]string{"netns", "exec", "keelson-" + c.ID(t) + "-node-0"}, args...)
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	in("ip", "route", "add", "unreachable", host+"/32")
	in("ss", "--kill", "dst", host)
	began := time.Now()
	wait.For(t, time.Minute, "exec through "+lost.Name+", which the node does not reach", func(ctx context.Context) error { return echo(ctx, lost) })
	t.Logf("%s reached the node through another %s after the cut", lost.Name, time.Since(began).Round(10*time.Millisecond))
	wait.For(t, time.Minute, lost.Name+" notices that the node has disconnected", func(context.Context) error {
		log, err := os.ReadFile(filepath.Join(c.Home, "log", lost.Name+".log"))
		if err == nil && !strings.Contains(string(log), "node disconnected") {
			err = fmt.Errorf("its log does not say so")
		}
		return err
	})
}
