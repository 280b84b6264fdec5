package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"keelson.dev/e2e/internal/wait"
)

// Process is a process as `keel status -o json` reports it.
type Process struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"` // 0 if it does not run
	GRPC     string `json:"grpc"`
	HTTPS    string `json:"https"`
	Healthy  bool   `json:"healthy"`
	Reason   string `json:"reason"` // why it is not healthy
	Log      string `json:"log"`
	Restarts int    `json:"restarts"` // since the supervisor started
}

// Processes are all that the cluster should run.
func (c *Cluster) Processes(ctx context.Context) ([]Process, error) {
	out, err := c.Run(ctx, "keel", "status", "-o", "json", "--home", c.Home)
	if err != nil {
		return nil, err
	}
	var status struct{ Services []Process }
	err = json.Unmarshal([]byte(out), &status)
	return status.Services, err
}

// Process is the process of a name.
func (c *Cluster) Process(t testing.TB, name string) Process {
	t.Helper()
	list, err := c.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(p Process) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("the cluster has no process %s", name)
	}
	return list[i]
}

// Apiservers are the processes of the apiservers, members or not.
func (c *Cluster) Apiservers(t testing.TB) []Process {
	t.Helper()
	list, err := c.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list, func(p Process) bool { return !strings.HasPrefix(p.Name, "apiserver-") })
}

// Healthy is nil when every process whose name begins with prefix is.
func (c *Cluster) Healthy(ctx context.Context, prefix string) error {
	list, err := c.Processes(ctx)
	for _, p := range list {
		if strings.HasPrefix(p.Name, prefix) && !p.Healthy {
			err = errors.Join(err, fmt.Errorf("%s, process %d: %s", p.Name, p.PID, p.Reason))
		}
	}
	return err
}

// Replaced is nil when every process is healthy and another one has taken the place of
// this one.
func (c *Cluster) Replaced(ctx context.Context, old Process) error {
	list, err := c.Processes(ctx)
	found := false
	for _, p := range list {
		switch {
		case !p.Healthy:
			err = errors.Join(err, fmt.Errorf("%s, process %d: %s", p.Name, p.PID, p.Reason))
		case p.Name == old.Name && p.PID == old.PID:
			err = errors.Join(err, fmt.Errorf("%s is still process %d", p.Name, p.PID))
		case p.Name == old.Name:
			found = true
		}
	}
	if err == nil && !found {
		err = fmt.Errorf("no process is %s", old.Name)
	}
	return err
}

// Kill ends a process by a signal; the supervisor starts it again.
func (c *Cluster) Kill(t testing.TB, p Process, signal syscall.Signal) {
	t.Helper()
	c.mu.Lock()
	c.killed[p.Name]++
	c.mu.Unlock()
	if err := syscall.Kill(p.PID, signal); err != nil {
		t.Fatalf("%s to %s, process %d: %v", signal, p.Name, p.PID, err)
	}
}

// Stop stops a process with SIGSTOP, as if its machine had gone. It goes on when resume
// is called, and at the test's end.
func (c *Cluster) Stop(t testing.TB, p Process) (resume func()) {
	t.Helper()
	if err := syscall.Kill(p.PID, syscall.SIGSTOP); err != nil {
		t.Fatalf("SIGSTOP to %s, process %d: %v", p.Name, p.PID, err)
	}
	resume = sync.OnceFunc(func() { _ = syscall.Kill(p.PID, syscall.SIGCONT) })
	t.Cleanup(resume)
	return resume
}

// Unexpected is an error if a process was restarted more often than Kill ended it. The
// supervisor restarts what dies so quickly that no test need notice.
func (c *Cluster) Unexpected(ctx context.Context) error {
	list, err := c.Processes(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range list {
		if p.Restarts > c.killed[p.Name] {
			log, _ := exec.Command("tail", "-n", "40", p.Log).Output()
			err = errors.Join(err, fmt.Errorf("%s was restarted %d times and killed %d times:\n%s", p.Name, p.Restarts, c.killed[p.Name], log))
		}
	}
	return err
}

// Member is a line of `keel member list`.
type Member struct {
	Name, Address string
	Etcd, Raft    string // leader, voter, learner or absent
	Lag           string // entries that etcd has committed and the member has not applied
	Healthy       bool
}

// Members are the members that carry the state.
func (c *Cluster) Members(ctx context.Context) (all []Member, err error) {
	out, err := c.Run(ctx, "keel", "member", "list", "--home", c.Home)
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
		f := strings.Fields(line)
		if len(f) < 7 {
			return nil, fmt.Errorf("a line of keel member list has %d columns, want 7 at least:\n%s", len(f), out)
		}
		all = append(all, Member{Name: f[0], Address: f[1], Etcd: f[2], Lag: f[3], Raft: f[4], Healthy: f[6] == "true"})
	}
	return all, nil
}

// Settled waits until every member is healthy and one leads etcd, and returns the members.
func (c *Cluster) Settled(t testing.TB) (all []Member) {
	t.Helper()
	wait.For(t, settleTime, "all members are healthy and one leads", func(ctx context.Context) (err error) {
		if all, err = c.Members(ctx); err != nil {
			return err
		}
		leads := func(m Member) bool { return m.Etcd == "leader" }
		if slices.ContainsFunc(all, func(m Member) bool { return !m.Healthy }) || !slices.ContainsFunc(all, leads) {
			return fmt.Errorf("the members are %+v", all)
		}
		return nil
	})
	return all
}
