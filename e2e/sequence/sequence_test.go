// Package sequence_test runs random sequences of keel's commands and of kills on one
// machine, also of kills while a command runs: after each step the cluster serves, or
// the error names the command to run next; files that keel did not create stay; delete
// leaves nothing behind.
package sequence_test

import (
	"cmp"
	"context"
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

	"keelson.dev/e2e/internal/cluster"
)

var (
	seed  = flag.Uint64("seed", 1, "seed of the first sequence; that of each further one is higher by one")
	count = flag.Int("count", 2, "number of sequences")
	steps = flag.Int("steps", 8, "number of steps in each")
	nodes = flag.Int("nodes", 0, "the most nodes with a container runtime")
)

func TestMain(m *testing.M) { os.Exit(cluster.Main(m.Run)) }

// sequence is one cluster and what is done to it.
type sequence struct {
	*testing.T
	c        *cluster.Cluster
	snapshot string
	random   *rand.Rand
}

func TestSequences(t *testing.T) {
	for n := range *count {
		s := *seed + uint64(n)
		t.Run(fmt.Sprint("seed-", s), func(t *testing.T) {
			c := cluster.New(t)
			c.Patience = 3 * time.Minute
			q := &sequence{T: t, c: c, random: rand.New(rand.NewPCG(s, s))}
			q.run()
		})
	}
}

func (q *sequence) run() {
	beside := q.c.Home + ".canary"
	q.write(beside)
	up := []string{"up", "--nodes", strconv.Itoa(*nodes), "--simulated-nodes", "1", "--apiservers", []string{"1", "3"}[q.random.IntN(2)]}
	if _, err := q.c.Up(q.Context(), up[1:]...); err != nil {
		q.Fatal(err)
	}
	within := filepath.Join(q.c.Home, "canary", "file")
	q.write(within)
	// Before the cluster is deleted, which expects that nothing remains.
	q.Cleanup(func() { _ = errors.Join(os.Remove(beside), os.RemoveAll(filepath.Dir(within))) })
	// Every snapshot has it, so it exists whatever is done.
	q.kubectl("the start", "create", "configmap", "first")
	for n := range *steps {
		what, err := q.step()
		q.Logf("step %d: %s: %v", n, what, err)
		if err != nil && !killed(err) && !strings.Contains(err.Error(), "`keel ") {
			q.Errorf("%s: the error names no command to run next: %v", what, err)
		}
		// Whatever was done, up leads to a cluster that serves, or names the command that does.
		_, err = q.keel("up")
		if err != nil {
			if found := recovery.FindStringSubmatch(err.Error()); found != nil {
				q.Logf("%s", found[0])
				if _, err = q.keel("member", "recover", "--from", found[1]); err == nil {
					_, err = q.keel("up")
				}
			}
		}
		if err != nil {
			q.Fatalf("after %s: %v", what, err)
		}
		q.serves(what)
		for _, file := range []string{beside, within} {
			if _, err := os.Stat(file); err != nil {
				q.Fatalf("after %s: %v", what, err)
			}
		}
	}
	if q.random.IntN(2) == 0 {
		_, err := q.hit(nil, "delete")
		q.Logf("delete: %v", err)
	}
	if _, err := q.keel("delete"); err != nil {
		q.Fatal(err)
	}
	for _, file := range []string{beside, within} {
		if _, err := os.Stat(file); err != nil {
			q.Errorf("after delete: %v", err)
		}
	}
	if err := cluster.Watch.Check(); err != nil {
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

// recovery is how up reports that a recovery was interrupted.
var recovery = regexp.MustCompile("was interrupted: complete it with `keel member recover --from ([a-z0-9-]+) ")

func (q *sequence) keel(args ...string) (string, error) {
	return q.c.Run(q.Context(), "keel", append(args, "--home", q.c.Home)...)
}

// hit runs a command and kills a process while it runs: one of the cluster, or the command
// itself if victim is nil.
func (q *sequence) hit(victim *cluster.Process, args ...string) (what string, err error) {
	q.Helper()
	what = strings.Join(args, " ")
	ctx, cancel := context.WithCancel(q.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := q.c.Run(ctx, "keel", append(args, "--home", q.c.Home)...)
		ended <- err
	}()
	// Commands take from a few milliseconds to some seconds: the logarithm of the delay is
	// distributed evenly.
	after := time.Duration(float64(time.Millisecond) * math.Pow(10, 1+2.5*q.random.Float64()))
	select {
	case err := <-ended:
		return what, err
	case <-time.After(after):
	}
	if victim == nil {
		cancel() // kills it
		what += fmt.Sprintf(", killed after %s", after)
	} else {
		_ = syscall.Kill(victim.PID, syscall.SIGKILL)
		what += fmt.Sprintf(", with a kill -9 of %s after %s", victim.Name, after)
	}
	return what, <-ended
}

// killed reports whether a command was ended by a kill of the test.
func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.ExitCode() == -1
}

// supervisor is the process that keeps the others running.
func (q *sequence) supervisor() *cluster.Process {
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
		if strings.HasSuffix(string(line), "supervise\x00--home\x00"+q.c.Home+"\x00") {
			return &cluster.Process{Name: "the supervisor", PID: pid}
		}
	}
	q.Fatal("the cluster has no supervisor")
	return nil
}

// leader is a member that leads one of the stores; empty if none does, or there is one
// apiserver alone.
func (q *sequence) leader() string {
	members, _ := q.c.Members(q.Context())
	var leaders []string
	for _, m := range members {
		if m.Etcd == "leader" || m.Raft == "leader" {
			leaders = append(leaders, m.Name)
		}
	}
	if len(leaders) == 0 {
		return ""
	}
	return leaders[q.random.IntN(len(leaders))]
}

// victim chooses the process that a kill ends: a leader, the supervisor, or any of the list.
func (q *sequence) victim(list []cluster.Process) *cluster.Process {
	q.Helper()
	switch q.random.IntN(4) {
	case 0, 1:
		name := q.leader()
		if i := slices.IndexFunc(list, func(p cluster.Process) bool { return p.Name == name }); i >= 0 {
			return &list[i]
		}
	case 2:
		return q.supervisor()
	}
	return &list[q.random.IntN(len(list))]
}

// step does one thing, chosen at random.
func (q *sequence) step() (what string, err error) {
	list, err := q.c.Processes(q.Context())
	if err != nil {
		q.Fatal(err)
	}
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
		if what, err = q.disturbed(list, "snapshot", "save", file); err == nil {
			q.snapshot = file
		}
		return what, err
	case 6:
		if q.snapshot == "" {
			args = []string{"down"}
			break
		}
		if _, err = q.keel("down"); err != nil {
			return "down", err
		}
		args = []string{"snapshot", "restore", q.snapshot, "--set-aside"}
		list = nil
	case 7:
		// Nothing is lost: the cluster goes on from any disk that has everything.
		args = []string{"member", "recover", "--from", cmp.Or(q.leader(), one)}
	default:
		victim := q.victim(list)
		if victim.PID > 0 {
			err = syscall.Kill(victim.PID, syscall.SIGKILL)
		}
		if errors.Is(err, syscall.ESRCH) {
			err = nil // it has ended since it was listed
		}
		return "kill -9 of " + victim.Name, err
	}
	return q.disturbed(list, args...)
}

// disturbed runs a command; during every third one it kills a process of the list or the
// command itself.
func (q *sequence) disturbed(list []cluster.Process, args ...string) (what string, err error) {
	q.Helper()
	if q.random.IntN(3) > 0 {
		_, err = q.keel(args...)
		return strings.Join(args, " "), err
	}
	var victim *cluster.Process
	if len(list) > 0 && q.random.IntN(2) == 0 {
		victim = q.victim(list)
	}
	return q.hit(victim, args...)
}

// serves checks that something can be written, and that the first object still exists.
func (q *sequence) serves(after string) {
	q.Helper()
	q.kubectl(after, "create", "configmap", fmt.Sprintf("c-%d", time.Now().UnixNano()))
	q.kubectl(after, "get", "configmap", "first")
}

func (q *sequence) kubectl(after string, args ...string) {
	q.Helper()
	if _, err := q.c.Run(q.Context(), "kubectl", append(args, "--request-timeout=30s")...); err != nil {
		q.Fatalf("after %s: %v", after, err)
	}
}
