package ha_test

import (
	"bufio"
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
)

// judges are the programs of the clients that write and watch until their standard input
// ends, and judge what they saw. scripts/clients.sh gen builds them.
var judges = map[string][]string{
	"python": {"/usr/bin/python3", "../../clients/python/cluster/kills.py"},
	"nodejs": {"node", "../../clients/nodejs/build/cluster/kills.js"},
}

// TestOtherClientsWhileApiserversDie kills each of three apiservers once, the leader of etcd
// first, under the load of the clients for Python and Node.js: no event is lost or repeated,
// and no write is repeated.
func TestOtherClientsWhileApiserversDie(t *testing.T) {
	c := start(t)
	leaders, followers := byRole(t, c)
	ends := map[string]func(){}
	for name, command := range judges {
		ends[name] = judged(t, c, name, command)
	}
	for _, victim := range append(leaders, followers...) {
		kill(t, c, victim, syscall.SIGKILL)
	}
	for _, end := range ends {
		end()
	}
}

// byRole returns the processes of the apiserver that leads etcd and of the others.
func byRole(t *testing.T, c *cluster.Cluster) (leaders, followers []cluster.Process) {
	t.Helper()
	for _, m := range c.Settled(t) {
		p := c.Process(t, m.Name)
		if m.Etcd == "leader" {
			leaders = append(leaders, p)
		} else {
			followers = append(followers, p)
		}
	}
	return leaders, followers
}

// judged starts a client's program in a namespace of its own, waits until it writes, and
// returns a function that ends it and reports its verdict.
func judged(t *testing.T, c *cluster.Cluster, name string, command []string) (end func()) {
	t.Helper()
	ns := "clients-" + name
	c.Kubectl(t, "create", "namespace", ns)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	args := append(command[1:], strings.Join(c.Endpoints(t), ","), filepath.Join(c.Home, "pki", "admin"), ns)
	cmd := exec.CommandContext(ctx, command[0], args...)
	cmd.Env = append(cmd.Environ(), "PYTHONPATH=../../clients/python/src")
	var problems strings.Builder
	cmd.Stderr = &problems
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	out := bufio.NewReader(stdout)
	if line, err := out.ReadString('\n'); line != "ready\n" {
		_ = cmd.Wait()
		t.Fatalf("%s: the first line is %q: %v (scripts/clients.sh gen builds the programs)\n%s", name, line, err, problems.String())
	}
	return func() {
		t.Helper()
		_ = stdin.Close()
		rest, _ := io.ReadAll(out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s%s", name, err, rest, problems.String())
			return
		}
		t.Logf("%s: %s", name, rest)
	}
}
