package compose_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/internal/wait"
)

// engine is a container engine of the test's own.
type engine struct {
	dir    string
	daemon *exec.Cmd
	ended  chan error
}

func (e *engine) path(names ...string) string {
	return filepath.Join(append([]string{e.dir}, names...)...)
}

// start starts the daemon and waits until it answers.
func (e *engine) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(e.path("dockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// KEELSON_DOCKERD_FLAGS tries the engine another way, such as --userns-remap=default.
	e.daemon = exec.Command("dockerd", append(strings.Fields(os.Getenv("KEELSON_DOCKERD_FLAGS")),
		"--data-root", e.path("disk", "data"), "--exec-root", e.path("exec"), "--host", "unix://"+e.path("sock"), "--pidfile", e.path("pid"),
		"--bridge", "none", "--cgroup-parent", cgroupParent(e.dir), "--log-level", "warn")...)
	e.daemon.Stdout, e.daemon.Stderr = log, log
	if err := e.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	e.ended = make(chan error, 1)
	go func() { e.ended <- e.daemon.Wait() }()
	wait.For(t, time.Minute, "the engine answers", func(ctx context.Context) error {
		_, err := e.run(ctx, time.Minute, "docker", "version")
		return err
	})
}

// stop ends the daemon, which ends its containers.
func (e *engine) stop(t *testing.T) {
	t.Helper()
	if err := e.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("stop the engine: %v", err)
	}
	select {
	case <-e.ended:
	case <-time.After(90 * time.Second):
		t.Error("the engine did not stop within 90 s")
		_ = e.daemon.Process.Kill()
		<-e.ended
	}
}

func (e *engine) run(ctx context.Context, patience time.Duration, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = e.path("compose")
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.path("sock"), "DOCKER_CONFIG="+e.path("config"),
		"KUBECONFIG="+e.path("kubeconfig"), "HOME="+e.dir, "NO_PROXY=*", "no_proxy=*")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

func (e *engine) docker(args ...string) (string, error) {
	return e.run(context.Background(), time.Minute, "docker", args...)
}

func (e *engine) compose(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.run(t.Context(), 3*time.Minute, "docker-compose", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (e *engine) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// container is one of the project's.
type container struct {
	ID     string `json:"Id"`
	Name   string
	Config struct {
		Hostname string
		Labels   map[string]string
	}
	State struct {
		Running   bool
		PID       int `json:"Pid"`
		StartedAt time.Time
		ExitCode  int
		Health    *struct{ Status string }
	}
	RestartCount    int
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
	Mounts []struct{ Type, Name, Destination string }
}

// service is the name of the container's service; it is "node" for each node's.
func (c container) service() string {
	name := c.Config.Labels["com.docker.compose.service"]
	if strings.HasPrefix(name, "node-") {
		return "node"
	}
	return name
}

// containers are those of the project that are meant to run all the time.
func (e *engine) containers() ([]container, error) {
	ids, err := e.docker("ps", "-aq", "--filter", "label=com.docker.compose.project=keelson")
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(ids) == "" {
		return nil, nil
	}
	out, err := e.docker(append([]string{"inspect"}, strings.Fields(ids)...)...)
	if err != nil {
		return nil, err
	}
	var list []container
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	var lasting []container
	for _, c := range list {
		if s := c.service(); s != "setup" && s != "admit" {
			lasting = append(lasting, c)
		}
	}
	return lasting, nil
}

// of are the containers of a service.
func (e *engine) of(t *testing.T, service string) []container {
	t.Helper()
	all, err := e.containers()
	if err != nil {
		t.Fatal(err)
	}
	var out []container
	for _, c := range all {
		if c.service() == service {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		t.Fatalf("no container of %s", service)
	}
	return out
}

// again waits until a container that was killed runs as another process and reports that
// it is ready. It returns the time at which the engine had started it.
func (e *engine) again(t *testing.T, killed container) (started time.Time) {
	t.Helper()
	probe := map[string][]string{
		"apiserver-0": {"/apiserver", "healthcheck"}, "apiserver-1": {"/apiserver", "healthcheck"}, "apiserver-2": {"/apiserver", "healthcheck"},
		"balancer":  {"/keel", "balance", "--check", "--listen=:6443"},
		"scheduler": {"/scheduler", "healthcheck"}, "controller-manager": {"/controller-manager", "healthcheck"},
		"cloud-controller": {"/cloud-controller", "healthcheck"}, "node": {"/usr/bin/node", "healthcheck"},
	}[killed.service()]
	wait.For(t, 60*time.Second, killed.Name+" is back", func(ctx context.Context) error {
		out, err := e.docker("inspect", "-f", "{{.State.Running}} {{.State.Pid}} {{.State.StartedAt}}", killed.ID)
		if err != nil {
			return err
		}
		if now := strings.Fields(out); now[0] != "true" || now[1] == "0" || now[1] == strconv.Itoa(killed.State.PID) {
			return fmt.Errorf("it does not run again: %s", out)
		} else if started, err = time.Parse(time.RFC3339Nano, now[2]); err != nil {
			return err
		}
		_, err = e.docker(append([]string{"exec", killed.ID}, probe...)...)
		return err
	})
	return started
}

// describe logs the state of the containers and the ends of their logs.
func (e *engine) describe(t *testing.T) {
	out, err := e.docker("ps", "-a", "--format", "{{.Names}}\t{{.Status}}")
	t.Logf("containers: %v\n%s", err, out)
	names, _ := e.docker("ps", "-a", "--format", "{{.Names}}")
	for _, name := range strings.Fields(names) {
		cmd := exec.Command("docker", "logs", "--tail", "25", name)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.path("sock"))
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Logf("%s:\n%s", name, out)
		}
	}
	if log, err := os.ReadFile(e.path("dockerd.log")); err == nil {
		t.Logf("engine:\n%s", log[max(0, len(log)-4000):])
	}
}
