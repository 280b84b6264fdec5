// Package cluster is the harness of the tests that run `keel up`: it starts clusters of
// the built programs, drives them with the commands that a user has, looks at their
// processes and members, hurts them, and deletes them.
//
// # The design
//
// A test package hands its run to Main, once, from TestMain. Main takes an inventory of
// the machine before and compares after (package host): whatever a deleted cluster
// leaves behind fails the run.
//
//	func TestMain(m *testing.M) { os.Exit(cluster.Main(m.Run)) }
//
// A Cluster is a directory with programs and a home of its own in /var/tmp, so that tests
// neither meet each other nor what a user runs. There are three ways to one:
//
//   - Start: a cluster that runs, for one test; it is deleted when the test ends.
//   - New: the same before `keel up`, for a test that replaces Bin, or that fills the
//     home in another way.
//   - Open, Up and Delete: for a cluster that the tests of a package share, which no
//     test owns.
//
// Delete is part of every test: it fails if `keel delete` does, or leaves a file of the
// home or a pod's log.
//
// Run is the one place where a program starts: a program of Bin, or of Bin/runtime,
// with the cluster's kubeconfig, bounded in time, and with an error that holds the whole
// command line and all that the program printed. Everything else that asks the cluster
// something stands on it:
//
//	Keel, Kubectl, Apply   one command that has to succeed
//	Shows                  waits until kubectl prints something
//	Processes, Members     what `keel status` and `keel member list` report
//	Healthy, Replaced      conditions for package wait, with the reason if they do not hold
//	Kill, Stop             signals, by the pid that `keel status` reported
//	Dial, Client           gRPC connections as the administrator
//
// Methods that take a testing.TB end the test on failure; the others return an error
// and fit into a condition of package wait. All waiting is package wait's.
//
// The package asks the programs and reads the files that they document (cluster.json,
// kubeconfig, pki, log). It must not import a package of theirs other than the Go
// client, nor signal a process that a cluster of the test does not list.
//
// Tests that have no `keel up` have a place of their own: e2e/compose a container engine,
// e2e/fault a sandbox. They share packages wait, writer
// and host.
package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.dev/e2e/host"
	"keelson.dev/e2e/internal/wait"
)

// Watch is the look at the machine of this test run. Main sets it.
var Watch *host.Watch

// Main runs a package's tests between two looks at the machine and returns the exit
// code: not zero if tests fail, or if something is left. With KEELSON_KEEP in the
// environment clusters stay, and there is no second look.
func Main(run func() int) int {
	flag.Parse()
	var err error
	if Watch, err = host.Look(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	code := run()
	if keep() {
		return code
	}
	if err := Watch.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return max(code, 1)
	}
	return code
}

func keep() bool { return os.Getenv("KEELSON_KEEP") != "" }

// Cluster is one cluster of `keel up`.
type Cluster struct {
	Bin      string // the directory of the programs
	Home     string
	Patience time.Duration // bounds each command
	// Cache is the directory of what kubectl and helm keep of the API, which Delete removes.
	// In a user's, answers of an earlier cluster at the same address would count.
	Cache string

	mu     sync.Mutex
	killed map[string]int // signals that end a process, by the process' name
}

// patience is what a Cluster's Patience is unless its tests change it.
const patience = 2 * time.Minute

// Programs is the directory of the built programs: KEELSON_BIN, or bin of the checkout.
func Programs() (string, error) {
	bin, err := filepath.Abs(cmp.Or(os.Getenv("KEELSON_BIN"), "../../bin"))
	if err == nil {
		_, err = os.Stat(filepath.Join(bin, "keel"))
	}
	if err != nil {
		return "", fmt.Errorf("%w: run `make build runtime`, which builds the programs, or set KEELSON_BIN", err)
	}
	return bin, nil
}

// Image is the archive of a demonstration image: of KEELSON_IMAGES, or of the cache of
// the checkout, where scripts/demo-images.sh builds it.
func Image(name string) string {
	return filepath.Join(cmp.Or(os.Getenv("KEELSON_IMAGES"), "../../.cache/images"), name+".tar")
}

// Open makes a cluster with an empty home, for the tests of a package to share.
func Open() (*Cluster, error) {
	bin, err := Programs()
	if err != nil {
		return nil, err
	}
	home, err := os.MkdirTemp("/var/tmp", "keelson-e2e-*")
	if err != nil {
		return nil, err
	}
	cache, err := os.MkdirTemp("/var/tmp", "keelson-e2e-cache-*")
	return &Cluster{Bin: bin, Home: home, Patience: patience, Cache: cache, killed: map[string]int{}}, err
}

// New makes a cluster with an empty home. It is deleted when the test ends; a test that
// failed shows the ends of its logs first.
func New(t testing.TB) *Cluster {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.tails())
		}
		if err := c.Delete(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Start starts a cluster by `keel up` with these arguments.
func Start(t testing.TB, args ...string) *Cluster {
	t.Helper()
	c := New(t)
	began := time.Now()
	if out, err := c.Up(t.Context(), args...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("keel up %s took %s", strings.Join(args, " "), time.Since(began).Round(time.Millisecond))
	return c
}

// Up runs `keel up` and lets the run's look at the machine know the cluster.
func (c *Cluster) Up(ctx context.Context, args ...string) (string, error) {
	out, err := c.Run(ctx, "keel", append([]string{"up", "--home", c.Home}, args...)...)
	Watch.Cluster(c.Home)
	return out, err
}

// Delete runs `keel delete`. It fails if that leaves something of the home, or a pod's log.
func (c *Cluster) Delete() error {
	if keep() {
		fmt.Fprintln(os.Stderr, "the cluster is kept in", c.Home)
		return nil
	}
	var logs []string // lie outside of the home
	ledger, _ := filepath.Glob(filepath.Join(c.Home, "nodes", "*", "agent", "log", "*"))
	for _, entry := range ledger {
		if target, err := os.Readlink(entry); err == nil {
			logs = append(logs, target)
		}
	}
	_, err := c.Run(context.Background(), "keel", "delete", "--home", c.Home)
	_ = os.Remove(c.Home) // where no cluster ever was
	err = errors.Join(err, os.RemoveAll(c.Cache))
	for _, name := range append(logs, c.Home) {
		if _, gone := os.Lstat(name); !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("keel delete left %s", name))
		}
	}
	return err
}

// Command is a program with the cluster's kubeconfig: of Bin, or of Bin/runtime.
func (c *Cluster) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	path := filepath.Join(c.Bin, program)
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(c.Bin, "runtime", program)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.Home, "kubeconfig"), "KUBECACHEDIR="+c.Cache,
		"PATH="+c.Bin+":"+c.Bin+"/runtime:"+os.Getenv("PATH"), "NO_PROXY=*", "no_proxy=*")
	return cmd
}

// Run runs a program and returns its standard output. The error of one that fails holds
// the command line and all that it printed.
func (c *Cluster) Run(ctx context.Context, program string, args ...string) (string, error) {
	return c.Feed(ctx, "", program, args...)
}

// Feed is Run with a text as the standard input.
func (c *Cluster) Feed(ctx context.Context, stdin, program string, args ...string) (string, error) {
	out, _, err := c.run(ctx, stdin, program, args...)
	return out, err
}

func (c *Cluster) run(ctx context.Context, stdin, program string, args ...string) (out, problems string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	cmd := c.Command(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), errors.Join(err, ctx.Err()), stdout.String(), stderr.String())
	}
	return stdout.String(), stderr.String(), err
}

// Keel runs keel on the cluster and returns all that it printed, warnings last.
func (c *Cluster) Keel(t testing.TB, args ...string) string {
	t.Helper()
	began := time.Now()
	out, warnings, err := c.run(t.Context(), "", "keel", append(args, "--home", c.Home)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("keel %s took %s\n%s%s", strings.Join(args, " "), time.Since(began).Round(time.Millisecond), out, warnings)
	return out + warnings
}

// Kubectl runs kubectl and returns its standard output.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return c.Must(t, "kubectl", args...)
}

// Must is Run of a program that has to succeed.
func (c *Cluster) Must(t testing.TB, program string, args ...string) string {
	t.Helper()
	out, err := c.Run(t.Context(), program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Apply applies a manifest; further arguments are kubectl's.
func (c *Cluster) Apply(t testing.TB, manifest string, args ...string) {
	t.Helper()
	if _, err := c.Feed(t.Context(), manifest, "kubectl", append(args, "apply", "-f", "-")...); err != nil {
		t.Fatalf("%v\n%s", err, manifest)
	}
}

// Shows waits until kubectl with these arguments prints a text.
func (c *Cluster) Shows(t testing.TB, within time.Duration, want string, args ...string) {
	t.Helper()
	wait.For(t, within, fmt.Sprintf("kubectl %s prints %q", strings.Join(args, " "), want), func(ctx context.Context) error {
		out, err := c.Run(ctx, "kubectl", args...)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("it prints %q", out)
		}
		return err
	})
}

// LoadImages loads archives of demonstration images into all nodes.
func (c *Cluster) LoadImages(ctx context.Context, names ...string) error {
	args := []string{"image", "load", "--home", c.Home}
	for _, n := range names {
		args = append(args, Image(n))
	}
	_, err := c.Run(ctx, "keel", args...)
	return err
}

// ID is the cluster's id, which is part of the names of its links, namespaces and groups.
func (c *Cluster) ID(t testing.TB) string {
	t.Helper()
	var file struct{ ID string }
	data, err := os.ReadFile(filepath.Join(c.Home, "cluster.json"))
	if err == nil {
		err = json.Unmarshal(data, &file)
	}
	if err != nil || file.ID == "" {
		t.Fatalf("cluster.json of %s has no id: %v", c.Home, err)
	}
	return file.ID
}

// tails is the end of every process' log.
func (c *Cluster) tails() string {
	var all strings.Builder
	logs, _ := filepath.Glob(filepath.Join(c.Home, "log", "*.log"))
	for _, l := range logs {
		out, _ := exec.Command("tail", "-n", "30", l).Output()
		fmt.Fprintf(&all, "%s:\n%s\n", filepath.Base(l), out)
	}
	return all.String()
}
