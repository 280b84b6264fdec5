package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrDown means that no supervisor is running.
var ErrDown = errors.New("the cluster is not running")

// down contains the errors of a request if no supervisor is running or if it ends before it has
// answered.
var down = []error{syscall.ECONNREFUSED, os.ErrNotExist, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF}

// errStopping is the answer of a supervisor that ends as soon as its processes have.
var errStopping = errors.New("the cluster is stopping")

func (d Dir) do(ctx context.Context, method, path string, into any) error {
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, "unix", d.socket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://keel"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		if slices.ContainsFunc(down, func(d error) bool { return errors.Is(err, d) }) {
			return ErrDown
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusGone {
		return errStopping
	}
	if resp.StatusCode != http.StatusOK {
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return errors.New(strings.TrimSpace(string(msg)))
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// Status returns the state of all processes, or ErrDown if no supervisor is running.
func (d Dir) Status(ctx context.Context) ([]Status, error) {
	var out []Status
	return out, d.do(ctx, http.MethodGet, "/status", &out)
}

// Reload makes the supervisor read and follow the specifications.
func (d Dir) Reload(ctx context.Context) error { return d.do(ctx, http.MethodPost, "/reload", nil) }

// Stop stops everything including the supervisor, and returns ErrDown if no supervisor is
// running.
func (d Dir) Stop(ctx context.Context) error {
	if err := d.do(ctx, http.MethodPost, "/stop", nil); err != nil {
		return err
	}
	for {
		if err := d.do(ctx, http.MethodGet, "/status", nil); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Ensure starts the supervisor `args…` in the background unless one is running, and makes it
// follow the specifications. It waits for one that is stopping.
func (d Dir) Ensure(ctx context.Context, log string, args ...string) error {
	err := d.Reload(ctx)
	for errors.Is(err, errStopping) {
		select {
		case <-time.After(20 * time.Millisecond):
			err = d.Reload(ctx)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
	if !errors.Is(err, ErrDown) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for {
		if _, err := d.Status(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-exited:
			return fmt.Errorf("the supervisor ended (%w); see its log %s", err, log)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Alive returns the pids by name of those processes in the specifications that are running,
// even if no supervisor is.
func (d Dir) Alive() map[string]int {
	specs, err := d.ReadSpecs()
	if err != nil {
		return nil
	}
	pids := map[string]int{}
	for _, spec := range specs {
		p := process{dir: d, spec: spec}
		if r, ok := p.readRecord(); ok {
			pids[spec.Name] = r.PID
		}
	}
	return pids
}

// AnyAlive reports whether any process in the specifications is running.
func (d Dir) AnyAlive() bool { return len(d.Alive()) > 0 }
