// Package soak_test holds a cluster under load, and another at rest, for minutes,
// and measures what its control plane takes: memory as the kernel counts it,
// Go's heap, and CPU time. It starts the programs and knows no package of them.
//
// It takes about twelve minutes and belongs to no other test run: `make soak`.
package soak_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	soakNodes    = flag.Int("soak.nodes", 1000, "simulated nodes of TestSoak")
	soakPods     = flag.Int("soak.pods", 10000, "pods of TestSoak")
	soakMinutes  = flag.Int("soak.minutes", 5, "minutes that each test watches its cluster, 2 at the least")
	soakProfiles = flag.String("soak.profiles", "", "directory for samples and profiles of the measured minutes; empty takes none")
)

// sampleEvery is the time between two looks at the services' memory.
const sampleEvery = 5 * time.Second

// cluster is a running `keel up`.
type cluster struct {
	bin, home string
}

// start makes a cluster that goes with the test.
func start(t *testing.T, args ...string) *cluster {
	t.Helper()
	if *soakMinutes < 2 {
		t.Fatalf("-soak.minutes %d: the first minute is not measured, so want 2 at the least", *soakMinutes)
	}
	bin := os.Getenv("KEELSON_BIN")
	if bin == "" {
		bin = "../../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "keel")); err != nil {
		t.Fatalf("%v: run `make soak`, which builds the programs first", err)
	}
	home, err := os.MkdirTemp("/var/tmp", "keelson-soak-*")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{bin: bin, home: home}
	t.Cleanup(func() {
		if out, err := c.run(nil, "keel", "delete", "--home", home); err != nil {
			t.Errorf("keel delete: %v\n%s", err, out)
		}
		_ = os.RemoveAll(home)
	})
	c.must(t, nil, "keel", append([]string{"up", "--home", home}, args...)...)
	return c
}

// run runs one of our programs, or one of bin/runtime's, for two minutes at most.
func (c *cluster) run(stdin []byte, program string, args ...string) (string, error) {
	path := filepath.Join(c.bin, program)
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(c.bin, "runtime", program)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.home, "kubeconfig"),
		"PATH="+c.bin+":"+c.bin+"/runtime:"+os.Getenv("PATH"), "NO_PROXY=*", "no_proxy=*")
	cmd.Stdin = bytes.NewReader(stdin)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w\n%s", err, problems.String())
	}
	return out.String(), nil
}

func (c *cluster) must(t *testing.T, stdin []byte, program string, args ...string) string {
	t.Helper()
	out, err := c.run(stdin, program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

// eventually polls a condition every second until it holds; the last error is the
// failure.
func eventually(t *testing.T, within time.Duration, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		<-tick.C
	}
}

// service is a process of the control plane.
type service struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Healthy bool   `json:"healthy"`
	Reason  string `json:"reason"`
}

// controlPlane is the four services whose sum docs/figures.md bounds; what runs pods
// is not of it. It fails unless all processes of the cluster are healthy.
func (c *cluster) controlPlane(t *testing.T) []service {
	t.Helper()
	var s struct{ Services []service }
	if err := json.Unmarshal([]byte(c.must(t, nil, "keel", "status", "-o", "json", "--home", c.home)), &s); err != nil {
		t.Fatal(err)
	}
	byName := map[string]service{}
	for _, p := range s.Services {
		if !p.Healthy {
			t.Fatalf("%s is not healthy: %s", p.Name, p.Reason)
		}
		byName[p.Name] = p
	}
	var out []service
	for _, name := range []string{"apiserver-0", "scheduler", "controller-manager", "cloud-controller"} {
		p, ok := byName[name]
		if !ok {
			t.Fatalf("there is no process %s", name)
		}
		out = append(out, p)
	}
	return out
}

// opsSocket is where a service tells its metrics and profiles.
func (c *cluster) opsSocket(s service) string {
	return filepath.Join(c.home, "run", s.Name+".ops")
}

// readyNodes counts the Ready nodes.
func (c *cluster) readyNodes() (int, error) {
	out, err := c.run(nil, "kubectl", "get", "nodes", "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
	return strings.Count(out, "True"), err
}
