// Package sequence_test runs random sequences of keel's commands and of kills on one
// machine: after each step the cluster serves, or the error says the way out; nothing
// of a foreign hand is deleted; nothing is left after delete.
package sequence_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/host"
)

var (
	seed  = flag.Uint64("seed", 1, "of the first sequence; the next one has the next")
	count = flag.Int("count", 2, "how many sequences")
	steps = flag.Int("steps", 8, "steps of each")
)

var machine *host.Watch

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if machine, err = host.Look(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(host.Run(m, machine))
}

// sequence is one cluster and what is done to it.
type sequence struct {
	*testing.T
	bin, home, snapshot string
	random              *rand.Rand
}

func TestSequences(t *testing.T) {
	bin, err := filepath.Abs(os.Getenv("KEELSON_BIN"))
	if err != nil || os.Getenv("KEELSON_BIN") == "" {
		t.Fatalf("KEELSON_BIN is not the directory of the programs: run `make sequences`: %v", err)
	}
	for n := range *count {
		s := *seed + uint64(n)
		t.Run(fmt.Sprint("seed-", s), func(t *testing.T) {
			dir := t.TempDir()
			q := &sequence{T: t, bin: bin, home: filepath.Join(dir, "home"), random: rand.New(rand.NewPCG(s, s))}
			q.run(dir)
		})
	}
}

func (q *sequence) run(dir string) {
	beside := filepath.Join(dir, "canary")
	q.write(beside)
	q.Cleanup(func() { _, _ = q.keel("delete") })
	up := []string{"up", "--nodes", "0", "--simulated-nodes", "1", "--apiservers", []string{"1", "3"}[q.random.IntN(2)]}
	if out, err := q.keel(up...); err != nil {
		q.Fatalf("keel %v: %v\n%s", up, err, out)
	}
	machine.Cluster(q.home)
	within := filepath.Join(q.home, "canary", "file")
	q.write(within)
	for n := range *steps {
		what, out, err := q.step()
		q.Logf("step %d: %s: %v", n, what, err)
		if err != nil && !strings.Contains(out, "`keel ") {
			q.Errorf("%s: the error names no way out: %s", what, out)
		}
		// Whatever was done, up is the way to a cluster that serves.
		if out, err := q.keel("up"); err != nil {
			q.Fatalf("after %s: keel up: %v\n%s", what, err, out)
		}
		q.serves(what)
		for _, file := range []string{beside, within} {
			if _, err := os.Stat(file); err != nil {
				q.Fatalf("after %s: %v", what, err)
			}
		}
	}
	if out, err := q.keel("delete"); err != nil {
		q.Fatalf("keel delete: %v\n%s", err, out)
	}
	for _, file := range []string{beside, within} {
		if _, err := os.Stat(file); err != nil {
			q.Errorf("after delete: %v", err)
		}
	}
	if err := machine.Check(); err != nil {
		q.Error(err)
	}
}

func (q *sequence) write(path string) {
	q.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		q.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		q.Fatal(err)
	}
}

func (q *sequence) keel(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(q.bin, "keel"), append(args, "--home", q.home)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// process is one of the cluster.
type process struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

func (q *sequence) processes() []process {
	q.Helper()
	cmd := exec.Command(filepath.Join(q.bin, "keel"), "status", "-o", "json", "--home", q.home)
	out, err := cmd.Output()
	var s struct{ Services []process }
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil {
		q.Fatalf("keel status: %v", err)
	}
	return s.Services
}

// step does one thing, chosen at random.
func (q *sequence) step() (what, out string, err error) {
	list := q.processes()
	var members []string
	for _, p := range list {
		if strings.HasPrefix(p.Name, "apiserver-") {
			members = append(members, p.Name)
		}
	}
	one := members[q.random.IntN(len(members))]
	var args []string
	switch q.random.IntN(9) {
	case 0:
		args = []string{"down"}
	case 1:
		args = []string{"up", "--simulated-nodes", fmt.Sprint(q.random.IntN(4))}
	case 2:
		if len(members) > 4 {
			args = []string{"member", "remove", one}
			break
		}
		args = []string{"member", "add"}
	case 3:
		args = []string{"member", "remove", one}
	case 4:
		args = []string{"member", "replace", one}
	case 5:
		args = []string{"snapshot", "save", filepath.Join(q.TempDir(), "snapshot")}
		out, err = q.keel(args...)
		if err == nil {
			q.snapshot = args[2]
		}
		return strings.Join(args[:2], " "), out, err
	case 6:
		if q.snapshot == "" {
			args = []string{"down"}
			break
		}
		if out, err = q.keel("down"); err != nil {
			return "down", out, err
		}
		args = []string{"snapshot", "restore", q.snapshot, "--set-aside"}
	default:
		victim := list[q.random.IntN(len(list))]
		if victim.PID > 0 {
			err = syscall.Kill(victim.PID, syscall.SIGKILL)
		}
		return "kill -9 of " + victim.Name, "", err
	}
	out, err = q.keel(args...)
	return strings.Join(args, " "), out, err
}

// serves makes sure that something can be written.
func (q *sequence) serves(after string) {
	q.Helper()
	name := fmt.Sprintf("c-%d", time.Now().UnixNano())
	cmd := exec.Command(filepath.Join(q.bin, "runtime", "kubectl"), "--kubeconfig", filepath.Join(q.home, "kubeconfig"),
		"create", "configmap", name, "--request-timeout=30s")
	cmd.Env = append(os.Environ(), "NO_PROXY=*", "no_proxy=*")
	if out, err := cmd.CombinedOutput(); err != nil {
		q.Fatalf("after %s: %v\n%s", after, err, out)
	}
}
