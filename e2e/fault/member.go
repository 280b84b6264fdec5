package fault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Member is one apiserver: its process, which is restarted whenever it ends, its disk and its
// station in the network.
type Member struct {
	Name  string
	Index int
	// dir is where its file system is mounted; its data is in dir/data.
	dir, log string
	args     []string
	env      []string
	station  *station

	delay, fail atomic.Int64 // of its syncs

	mu     sync.Mutex
	wanted bool
	pid    int           // 0 if the process is not running
	ended  chan struct{} // closed when the running process has ended
	change chan struct{} // closed when wanted changes
	starts int
	hook   clockHook
	wg     sync.WaitGroup
	ops    *http.Client
}

// The ports of each member, at the member's address.
const (
	portHTTPS = 6443
	portGRPC  = 6444
	portPeer  = 6445
	portEtcd  = 2380
)

// diskBytes is the size of a member's file system.
const diskBytes = 512 << 20

// start mounts the member's file system and keeps its process running until ctx ends.
func (m *Member) start(ctx context.Context) error {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(m.Name, m.dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", diskBytes)); err != nil {
		return fmt.Errorf("mount a file system for %s: %w", m.Name, err)
	}
	m.change, m.wanted = make(chan struct{}), true
	m.ops = &http.Client{Timeout: 4 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", m.socket())
		},
	}}
	m.wg.Go(func() { m.keep(ctx) })
	return nil
}

func (m *Member) socket() string { return m.log + ".ops" }
func (m *Member) data() string   { return filepath.Join(m.dir, "data") }

// keep starts the process while it is wanted.
func (m *Member) keep(ctx context.Context) {
	pause := 50 * time.Millisecond
	for {
		m.mu.Lock()
		wanted, change := m.wanted, m.change
		m.mu.Unlock()
		if !wanted {
			select {
			case <-change:
				continue
			case <-ctx.Done():
				return
			}
		}
		began := time.Now()
		err := m.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.note("cannot start: " + err.Error())
		}
		if time.Since(began) > 5*time.Second {
			pause = 50 * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-change:
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, time.Second)
	}
}

// note writes a line of the harness to the member's log.
func (m *Member) note(line string) {
	f, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "--- %s %s\n", time.Now().Format("15:04:05.000"), line)
}

// once runs the process until it ends.
func (m *Member) once(ctx context.Context) error {
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	ours, err := net.FileConn(os.NewFile(uintptr(pair[0]), "ours"))
	if err != nil {
		return err
	}
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe", m.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(append(os.Environ(), m.env...), roleVariable+"="+roleLaunch)
	cmd.ExtraFiles = []*os.File{theirs}
	err = inThread(func() error {
		if err := m.station.enter(); err != nil {
			return err
		}
		return cmd.Start() // in the namespace of this thread
	})
	_ = theirs.Close()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	m.mu.Lock()
	m.pid, m.ended, m.hook = cmd.Process.Pid, ended, clockHook{}
	m.starts++
	wanted := m.wanted
	m.mu.Unlock()
	if !wanted {
		_ = cmd.Process.Kill()
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	answers := &syncs{delay: &m.delay, fail: &m.fail}
	err = answers.receive(ours.(*net.UnixConn))
	if err != nil {
		_ = cmd.Process.Kill()
	} else {
		m.wg.Go(answers.serve)
	}
	wait := cmd.Wait()
	m.mu.Lock()
	m.pid = 0
	close(ended)
	m.mu.Unlock()
	m.note(fmt.Sprintf("ended: %v", wait))
	return err
}

// want changes whether the process is to run.
func (m *Member) want(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = yes
	close(m.change)
	m.change = make(chan struct{})
}

// signal sends a signal to the process, if it runs, and returns a channel that is closed
// when that process has ended.
func (m *Member) signal(s syscall.Signal) <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pid == 0 {
		over := make(chan struct{})
		close(over)
		return over
	}
	_ = syscall.Kill(m.pid, s)
	return m.ended
}

// Kill ends the process by SIGKILL; it is started again.
func (m *Member) Kill() { <-m.signal(syscall.SIGKILL) }

// Hold ends the process by SIGKILL and keeps it from starting until Release.
func (m *Member) Hold() {
	m.want(false)
	m.Kill()
}

// Release lets the process start again.
func (m *Member) Release() { m.want(true) }

// Terminate ends the process by SIGTERM, or by SIGKILL if that takes too long; it is
// started again.
func (m *Member) Terminate() error {
	select {
	case <-m.signal(syscall.SIGTERM):
		return nil
	case <-time.After(20 * time.Second):
		m.Kill()
		return fmt.Errorf("%s had not stopped 20 s after SIGTERM", m.Name)
	}
}

// get sends a GET request to the member's operations listener.
func (m *Member) get(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ops"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := m.ops.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// Ready returns nil if the member is ready and has a vote in both stores.
func (m *Member) Ready(ctx context.Context) error {
	if _, err := m.get(ctx, "/readyz?verbose"); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	return nil
}

var leads = regexp.MustCompile(`(?m)^keelson_store_leader\{store="([a-z]+)"\} 1$`)

// Leads returns the stores that the member leads, of "lasting" and "transient".
func (m *Member) Leads(ctx context.Context) ([]string, error) {
	text, err := m.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, found := range leads.FindAllStringSubmatch(text, -1) {
		out = append(out, found[1])
	}
	return out, nil
}

// tail returns the end of the member's log.
func (m *Member) tail(lines int) string {
	out, _ := exec.Command("tail", "-n", fmt.Sprint(lines), m.log).Output()
	return string(out)
}
