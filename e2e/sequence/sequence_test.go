// Package sequence_test runs random sequences of keel's commands and of kills on one
// machine, also of kills while a command runs: after each step the cluster serves, or
// the error names the command to run next; files that keel did not make stay; delete
// leaves nothing behind.
package sequence_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
	nodes = flag.Int("nodes", 0, "how many nodes with a container runtime there are at most")
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
	up := []string{"up", "--nodes", strconv.Itoa(*nodes), "--simulated-nodes", "1", "--apiservers", []string{"1", "3"}[q.random.IntN(2)]}
	if out, err := q.keel(up...); err != nil {
		q.Fatalf("keel %v: %v\n%s", up, err, out)
	}
	machine.Cluster(q.home)
	within := filepath.Join(q.home, "canary", "file")
	q.write(within)
	// Every snapshot has it: whatever is done, it is there afterwards.
	q.kubectl("the start", "create", "configmap", "first")
	for n := range *steps {
		what, out, err := q.step()
		q.Logf("step %d: %s: %v", n, what, err)
		if err != nil && !killed(err) && !strings.Contains(out, "`keel ") {
			q.Errorf("%s: the error names no command to run next: %s", what, out)
		}
		// Whatever was done, up is the way to a cluster that serves, or names it.
		out, err = q.keel("up")
		if found := recovery.FindStringSubmatch(out); err != nil && found != nil {
			q.Logf("%s", found[0])
			if out, err = q.keel("member", "recover", "--from", found[1]); err == nil {
				out, err = q.keel("up")
			}
		}
		if err != nil {
			q.Fatalf("after %s: keel up: %v\n%s", what, err, out)
		}
		q.serves(what)
		for _, file := range []string{beside, within} {
			if _, err := os.Stat(file); err != nil {
				q.Fatalf("after %s: %v", what, err)
			}
		}
	}
	if q.random.IntN(2) == 0 {
		_, _, err := q.hit(nil, "delete")
		q.Logf("delete: %v", err)
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

// recovery is how up says that one was interrupted.
var recovery = regexp.MustCompile("was interrupted: complete it with `keel member recover --from ([a-z0-9-]+) ")

// commandTime bounds one command.
const commandTime = 3 * time.Minute

func (q *sequence) keel(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(q.bin, "keel"), append(args, "--home", q.home)...).CombinedOutput()
	return string(out), err
}

// hit runs a command and kills while it runs: a process of the cluster, or the command
// itself where the victim is nil.
func (q *sequence) hit(victim *process, args ...string) (what, out string, err error) {
	q.Helper()
	what = strings.Join(args, " ")
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(q.bin, "keel"), append(args, "--home", q.home)...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	// The supervisor inherits neither: it logs to its own file.
	if err := cmd.Start(); err != nil {
		q.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// Commands take from a few milliseconds to some seconds: as many kills fall into
	// each tenfold.
	after := time.Duration(float64(time.Millisecond) * math.Pow(10, 1+2.5*q.random.Float64()))
	select {
	case err := <-ended:
		return what, said.String(), err
	case <-time.After(after):
	}
	if victim == nil {
		_ = cmd.Process.Kill()
		what += fmt.Sprintf(", killed after %s", after)
	} else {
		_ = syscall.Kill(victim.PID, syscall.SIGKILL)
		what += fmt.Sprintf(", with a kill -9 of %s after %s", victim.Name, after)
	}
	err = <-ended
	return what, said.String(), err
}

// killed reports whether a command was ended by a kill of the test.
func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == -1
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

// supervisor is the process that keeps the others running.
func (q *sequence) supervisor() *process {
	q.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		q.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if strings.HasSuffix(string(line), "supervise\x00--home\x00"+q.home+"\x00") {
			return &process{Name: "the supervisor", PID: pid}
		}
	}
	q.Fatal("no supervisor runs")
	return nil
}

// leader is the member that leads one of the stores; empty where there is one apiserver.
func (q *sequence) leader() string {
	out, err := q.keel("member", "list")
	if err != nil {
		return ""
	}
	var leaders []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); slices.Contains(f, "leader") {
			leaders = append(leaders, f[0])
		}
	}
	if len(leaders) == 0 {
		return ""
	}
	return leaders[q.random.IntN(len(leaders))]
}

// victim is whom a kill hits: a leader, the supervisor, or anybody.
func (q *sequence) victim(list []process) *process {
	q.Helper()
	switch q.random.IntN(4) {
	case 0, 1:
		name := q.leader()
		if i := slices.IndexFunc(list, func(p process) bool { return p.Name == name }); i >= 0 {
			return &list[i]
		}
	case 2:
		return q.supervisor()
	}
	return &list[q.random.IntN(len(list))]
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
	if q.random.IntN(2) == 0 {
		one = cmp.Or(q.leader(), one)
	}
	var args []string
	switch q.random.IntN(10) {
	case 0:
		args = []string{"down"}
	case 1:
		args = []string{"up", "--simulated-nodes", strconv.Itoa(q.random.IntN(4))}
		if *nodes > 0 && q.random.IntN(2) == 0 {
			args = []string{"up", "--nodes", strconv.Itoa(q.random.IntN(*nodes + 1)), "--drain-timeout", "5s"}
		}
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
		file := filepath.Join(q.TempDir(), "snapshot")
		what, out, err = q.disturbed(list, "snapshot", "save", file)
		if err == nil {
			q.snapshot = file
		}
		return what, out, err
	case 6:
		if q.snapshot == "" {
			args = []string{"down"}
			break
		}
		if out, err = q.keel("down"); err != nil {
			return "down", out, err
		}
		args = []string{"snapshot", "restore", q.snapshot, "--set-aside"}
		list = nil
	case 7:
		// Nothing is lost for good: it goes on from any disk that has heard everything.
		args = []string{"member", "recover", "--from", cmp.Or(q.leader(), one)}
	default:
		victim := q.victim(list)
		if victim.PID > 0 {
			err = syscall.Kill(victim.PID, syscall.SIGKILL)
		}
		if errors.Is(err, syscall.ESRCH) {
			err = nil // it has ended since it was listed
		}
		return "kill -9 of " + victim.Name, "", err
	}
	return q.disturbed(list, args...)
}

// disturbed runs a command, every third one while a process of the list or the command
// itself is killed.
func (q *sequence) disturbed(list []process, args ...string) (what, out string, err error) {
	q.Helper()
	if q.random.IntN(3) > 0 {
		out, err = q.keel(args...)
		return strings.Join(args, " "), out, err
	}
	var victim *process
	if len(list) > 0 && q.random.IntN(2) == 0 {
		victim = q.victim(list)
	}
	return q.hit(victim, args...)
}

// serves makes sure that something can be written, and that what was there is there.
func (q *sequence) serves(after string) {
	q.Helper()
	q.kubectl(after, "create", "configmap", fmt.Sprintf("c-%d", time.Now().UnixNano()))
	q.kubectl(after, "get", "configmap", "first")
}

func (q *sequence) kubectl(after string, args ...string) {
	q.Helper()
	args = append([]string{"--kubeconfig", filepath.Join(q.home, "kubeconfig"), "--request-timeout=30s"}, args...)
	cmd := exec.Command(filepath.Join(q.bin, "runtime", "kubectl"), args...)
	cmd.Env = append(os.Environ(), "NO_PROXY=*", "no_proxy=*")
	if out, err := cmd.CombinedOutput(); err != nil {
		q.Fatalf("after %s: kubectl %s: %v\n%s", after, strings.Join(args[3:], " "), err, out)
	}
}
