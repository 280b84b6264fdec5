package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"keelson.dev/tools/keel/internal/cgroup"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 5 * time.Second
	// steady is how long a process must run before its back-off is reset.
	steady = 10 * time.Second
	// stopGrace is how long a process may take to end after SIGTERM.
	stopGrace = 15 * time.Second
	// maxLog is the size in bytes above which a log is renamed when its process starts.
	maxLog = 32 << 20
)

// process keeps the process of one specification running.
type process struct {
	dir  Dir
	spec Spec

	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	pid      int
	restarts int
	lastErr  string
}

// record describes a running process for the next supervisor.
type record struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	Spec  string `json:"spec"`
}

// start starts a goroutine that keeps the process running.
func start(dir Dir, spec Spec) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{dir: dir, spec: spec, cancel: cancel, done: make(chan struct{})}
	go p.run(ctx)
	return p
}

// run starts the process and restarts it when it ends, until ctx ends. Then it stops the
// process.
func (p *process) run(ctx context.Context) {
	defer close(p.done)
	backoff := firstBackoff
	for first := true; ctx.Err() == nil; first = false {
		began := time.Now()
		err := p.once(ctx, first)
		p.set(0, err)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			backoff = firstBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
		p.mu.Lock()
		p.restarts++
		p.mu.Unlock()
	}
}

func (p *process) set(pid int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
	if err != nil {
		p.lastErr = err.Error()
	}
}

// once runs the process until it or ctx ends. With adopt, it takes over a process that an
// earlier supervisor left running.
func (p *process) once(ctx context.Context, adopt bool) error {
	if adopt {
		if r, ok := p.readRecord(); ok {
			if r.Spec == p.spec.hash() {
				p.set(r.PID, nil)
				return p.waitAdopted(ctx, r)
			}
			// The process has other arguments: stop it, then start a new one.
			end(r.PID, func() bool { return alive(r) })
		}
	}
	cmd, err := p.launch()
	if err != nil {
		return err
	}
	// Write the record before reporting the process as running, so that the next supervisor
	// knows it even if this one is killed now.
	if err := p.writeRecord(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	p.set(cmd.Process.Pid, nil)
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		_ = os.Remove(p.dir.record(p.spec.Name))
		if err == nil {
			return fmt.Errorf("%s ended", p.spec.Name)
		}
		return fmt.Errorf("%s: %w", p.spec.Name, err)
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(stopGrace):
		_ = cmd.Process.Kill()
		<-exited
	}
	_ = os.Remove(p.dir.record(p.spec.Name))
	return nil
}

// launch starts the command in its network namespace, with its log as output.
func (p *process) launch() (*exec.Cmd, error) {
	rotate(p.spec.Log)
	if err := os.MkdirAll(filepath.Dir(p.spec.Log), 0o755); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(p.spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(p.spec.Args[0], p.spec.Args[1:]...)
	cmd.Env = append(os.Environ(), p.spec.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	// The process gets its own group, so that a terminal's ^C reaches only keel.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = onThread(p.spec.Namespace, func() error {
		if p.spec.Cgroup == "" {
			return cmd.Start()
		}
		err := cgroup.Host.Start(p.spec.Cgroup, cmd.SysProcAttr, cmd.Start)
		if !errors.Is(err, cgroup.ErrNone) {
			return err
		}
		// Without cgroups the process starts all the same.
		fmt.Fprintf(os.Stderr, "%s is starting outside its cgroup: %v\n", p.spec.Name, err)
		return cmd.Start()
	})
	return cmd, err
}

// InNamespace runs f on a thread in a network namespace.
func InNamespace(name string, f func() error) error { return onThread(name, f) }

// onThread runs f on a thread that is in the network namespace, unless namespace is empty. The
// thread ends with f and is not reused for other goroutines.
func onThread(namespace string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // without unlock: the runtime ends the thread
		if namespace != "" {
			ns, err := netns.GetFromName(namespace)
			if err == nil {
				defer ns.Close()
				err = netns.Set(ns)
			}
			if err != nil {
				result <- fmt.Errorf("network namespace %s: %w", namespace, err)
				return
			}
		}
		result <- f()
	}()
	return <-result
}

// rotate renames a log that has become too large.
func rotate(path string) {
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		_ = os.Rename(path, path+".1")
	}
}

// waitAdopted waits for a process that is not a child of this one, and stops it if ctx ends
// first.
func (p *process) waitAdopted(ctx context.Context, r record) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			end(r.PID, func() bool { return alive(r) })
			_ = os.Remove(p.dir.record(p.spec.Name))
			return nil
		case <-tick.C:
			if !alive(r) {
				_ = os.Remove(p.dir.record(p.spec.Name))
				return fmt.Errorf("%s ended", p.spec.Name)
			}
		}
	}
}

// end stops a process with SIGTERM, then SIGKILL, and waits until it has ended.
func end(pid int, running func() bool) {
	_ = syscall.Kill(pid, syscall.SIGTERM)
	deadline := time.Now().Add(stopGrace)
	for running() {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			deadline = time.Now().Add(stopGrace)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// readRecord returns the record of the process if that process is still running.
func (p *process) readRecord() (record, bool) {
	data, err := os.ReadFile(p.dir.record(p.spec.Name))
	if err != nil {
		return record{}, false
	}
	var r record
	if json.Unmarshal(data, &r) != nil || !alive(r) {
		return record{}, false
	}
	return r, true
}

func (p *process) writeRecord(pid int) error {
	start, ok := startTime(pid)
	if !ok {
		return nil // it has ended already, and Wait will report that
	}
	data, err := json.Marshal(record{PID: pid, Start: start, Spec: p.spec.hash()})
	if err != nil {
		return err
	}
	tmp := p.dir.record(p.spec.Name) + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, p.dir.record(p.spec.Name))
}

// alive reports whether the process of a record is running. The start time distinguishes it
// from another process with the same pid.
func alive(r record) bool {
	start, ok := startTime(r.PID)
	return ok && start == r.Start
}

// startTime returns field 22 of /proc/PID/stat, in clock ticks since boot (proc(5)), and
// reports whether the process is running. A zombie is not.
func startTime(pid int) (uint64, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	_, rest, ok := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return 0, false
	}
	n, err := strconv.ParseUint(fields[19], 10, 64)
	return n, err == nil
}
