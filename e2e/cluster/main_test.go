// Package cluster_test uses a cluster as a person does: `keel up`, kubectl, the
// application's own addresses, kill -9. It knows no package of the services.
package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/host"
)

// fixture is the cluster that the tests of this package share.
type fixture struct {
	bin, images, home string
	up                time.Duration
	upOutput          string
}

var shared fixture

// machineWatch fails the run where a cluster leaves something behind.
var machineWatch *host.Watch

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) (code int) {
	var err error
	if machineWatch, err = host.Look(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	if shared, err = newFixture(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer func() {
		if os.Getenv("KEELSON_KEEP") != "" {
			fmt.Fprintln(os.Stderr, "e2e: the cluster is kept in", shared.home)
			return
		}
		logs := shared.logs()
		machineWatch.Cluster(shared.home)
		out, err := shared.command("keel", "delete", "--home", shared.home).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("delete: %w\n%s", err, out)
		}
		if err := errors.Join(err, machineWatch.Check()); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: FAIL:", err)
			code = max(code, 1)
		}
		for _, name := range logs {
			if _, err := os.Lstat(name); err == nil {
				fmt.Fprintln(os.Stderr, "e2e: FAIL: delete left", name)
				code = max(code, 1)
			}
		}
	}()
	began := time.Now()
	out, err := shared.command("keel", "up", "--home", shared.home, "--nodes", "3").CombinedOutput()
	shared.up, shared.upOutput = time.Since(began), string(out)
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: keel up: %v\n%s", err, out)
		return 1
	}
	if err := shared.loadImages("busybox", "nginx", "shop", "postgres", "redis"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code = m.Run()
	if err := unexpected(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: FAIL:", err)
		return max(code, 1)
	}
	return code
}

func newFixture() (fixture, error) {
	f := fixture{bin: os.Getenv("KEELSON_BIN"), images: os.Getenv("KEELSON_IMAGES")}
	if f.bin == "" {
		f.bin = "../../bin"
	}
	if f.images == "" {
		f.images = "../../.cache/images"
	}
	var err error
	if f.bin, err = filepath.Abs(f.bin); err != nil {
		return f, err
	}
	if f.images, err = filepath.Abs(f.images); err != nil {
		return f, err
	}
	if _, err := os.Stat(filepath.Join(f.bin, "keel")); err != nil {
		return f, fmt.Errorf("%w: run `make e2e`, which builds the programs first", err)
	}
	f.home, err = os.MkdirTemp("/var/tmp", "keelson-e2e-*")
	return f, err
}

// logs are the folders of the logs of the cluster's pods: outside of its home.
func (f fixture) logs() (out []string) {
	ledger, _ := filepath.Glob(filepath.Join(f.home, "nodes", "*", "agent", "log", "*"))
	for _, entry := range ledger {
		if target, err := os.Readlink(entry); err == nil {
			out = append(out, target)
		}
	}
	return out
}

func (f fixture) loadImages(names ...string) error {
	args := []string{"image", "load", "--home", f.home}
	for _, n := range names {
		args = append(args, filepath.Join(f.images, n+".tar"))
	}
	if out, err := f.command("keel", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("keel image load: %w\n%s", err, out)
	}
	return nil
}

// command is one of our programs, or one of bin/runtime's, with the cluster's
// kubeconfig.
func (f fixture) command(program string, args ...string) *exec.Cmd {
	path := filepath.Join(f.bin, program)
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(f.bin, "runtime", program)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(f.home, "kubeconfig"), "PATH="+f.bin+":"+f.bin+"/runtime:"+os.Getenv("PATH"), "NO_PROXY=*", "no_proxy=*")
	return cmd
}

// must runs a program and fails the test with its output if it fails.
func must(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := try(program, args...)
	if err != nil {
		t.Fatalf("%s %s: %v", program, strings.Join(args, " "), err)
	}
	return out
}

// try runs a program with a bound of two minutes.
func try(program string, args ...string) (string, error) { return tryWith(nil, program, args...) }

func tryWith(stdin []byte, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := shared.command(program, args...)
	bounded := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	bounded.Env, bounded.Stdin = cmd.Env, bytes.NewReader(stdin)
	var out, problems bytes.Buffer
	bounded.Stdout, bounded.Stderr = &out, &problems
	if err := bounded.Run(); err != nil {
		return out.String(), fmt.Errorf("%w\n%s%s", err, out.String(), problems.String())
	}
	return out.String(), nil
}

// kubectl runs kubectl 1.37 and fails the test if it fails.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return must(t, "kubectl", args...)
}

// apply applies a manifest.
func apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := tryWith([]byte(manifest), "kubectl", "apply", "-f", "-"); err != nil {
		t.Fatalf("kubectl apply: %v", err)
	}
}

// namespace makes a namespace that goes with the test.
func namespace(t *testing.T) string {
	t.Helper()
	name := "e2e-" + strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ".", "-").Replace(t.Name()))
	name = strings.TrimRight(name[:min(len(name), 50)], "-")
	kubectl(t, "create", "namespace", name)
	t.Cleanup(func() { _, _ = try("kubectl", "delete", "namespace", name, "--wait=false") })
	eventually(t, time.Minute, "default service account", func() error {
		_, err := try("kubectl", "-n", name, "get", "serviceaccount", "default")
		return err
	})
	return name
}

// eventually polls a condition until it holds; the last error is the failure.
func eventually(t *testing.T, within time.Duration, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(100 * time.Millisecond)
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

// service is one line of `keel status -o json`.
type service struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	GRPC    string `json:"grpc"`
	HTTPS   string `json:"https"`
	Healthy bool   `json:"healthy"`
	Reason  string `json:"reason"`
	Log     string `json:"log"`
	// Restarts since the supervisor started.
	Restarts int `json:"restarts"`
}

// killed counts the processes that tests killed, by name.
var killed = map[string]int{}

// unexpected names what died without being killed: the supervisor brings it back so
// quickly that no test need notice.
func unexpected() error {
	list, err := status()
	if err != nil {
		return err
	}
	for _, s := range list {
		if s.Restarts > killed[s.Name] {
			log, _ := exec.Command("tail", "-n", "40", s.Log).Output()
			err = errors.Join(err, fmt.Errorf("%s was restarted %d times and killed %d times:\n%s", s.Name, s.Restarts, killed[s.Name], log))
		}
	}
	return err
}

func status() ([]service, error) {
	out, err := try("keel", "status", "-o", "json", "--home", shared.home)
	if err != nil {
		return nil, err
	}
	var s struct{ Services []service }
	return s.Services, json.Unmarshal([]byte(out), &s)
}

// healthy waits until every process is.
func healthy(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, "all processes healthy", func() error {
		list, err := status()
		if err != nil {
			return err
		}
		for _, s := range list {
			if !s.Healthy {
				return fmt.Errorf("%s: %s", s.Name, s.Reason)
			}
		}
		return nil
	})
}
