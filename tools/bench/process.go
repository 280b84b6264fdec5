package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server that the benchmark started.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string
	exited chan error
}

// spawn starts a program that logs to a file in dir.
func spawn(dir, path string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(path), exited: make(chan error, 1)}
	p.log = filepath.Join(dir, p.name+".log")
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.exited <- p.cmd.Wait() }()
	return p, nil
}

// stop ends the process: politely, and after ten seconds by force.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// ready waits, for at most 60 s, until url answers 200.
func (p *process) ready(ctx context.Context, url string, config *tls.Config) error {
	probe := http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: time.Second}
	defer probe.CloseIdleConnections()
	deadline := time.After(60 * time.Second)
	for {
		if resp, err := probe.Get(url); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case err := <-p.exited:
			p.exited <- err
			return fmt.Errorf("%s ended: %w\n%s", p.name, err, tail(p.log))
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("%s is not ready after 60 s\n%s", p.name, tail(p.log))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// tail returns the last 2 KiB of a file.
func tail(name string) []byte {
	data, _ := os.ReadFile(name)
	return data[max(0, len(data)-2048):]
}

// clockTick is the unit of CPU times in /proc: the kernel fixes USER_HZ at 100 on every
// architecture that Go supports.
const clockTick = 10 * time.Millisecond

// cpuOf returns the CPU time that processes have used.
func cpuOf(pids []int) time.Duration {
	var total time.Duration
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The program's name is in parentheses and may contain anything. utime and stime are
		// fields 14 and 15, that is, the 12th and 13th after it.
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) < 13 {
			continue
		}
		for _, f := range fields[11:13] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				continue
			}
			total += time.Duration(n) * clockTick
		}
	}
	return total
}

// pssOf returns the proportional set size of processes in bytes.
func pssOf(pids []int) (int64, error) {
	var total int64
	for _, pid := range pids {
		n, err := pss(pid)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func pss(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 2 && fields[0] == "Pss:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New(f.Name() + " has no Pss")
}

// started returns the processes of the named programs that have text in their arguments.
func started(text string, programs ...string) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !bytes.Contains(data, []byte(text)) {
			continue
		}
		program, _, _ := strings.Cut(string(data), "\x00")
		for _, name := range programs {
			if filepath.Base(program) == name {
				pid, err := strconv.Atoi(filepath.Base(dir))
				if err != nil {
					return nil, err
				}
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}
