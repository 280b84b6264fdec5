package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// processes returns the PIDs of a sandbox's shim and of its children, the sandbox's own
// process first and then that of its container.
func processes(t *testing.T, sandbox string) (shim int, children []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		line, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		args := bytes.Split(line, []byte{0})
		if strings.HasPrefix(filepath.Base(string(args[0])), "containerd-shim") && bytes.Contains(line, []byte("-id\x00"+sandbox+"\x00")) {
			shim, _ = strconv.Atoi(filepath.Base(d))
		}
	}
	for _, d := range dirs {
		status, _ := os.ReadFile(filepath.Join(d, "status"))
		if strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", shim)) {
			pid, _ := strconv.Atoi(filepath.Base(d))
			line, _ := os.ReadFile(filepath.Join(d, "cmdline"))
			if strings.HasPrefix(string(line), "/pause\x00") {
				children = append([]int{pid}, children...)
			} else {
				children = append(children, pid)
			}
		}
	}
	if shim == 0 || len(children) != 2 {
		t.Fatalf("shim %d, processes %v", shim, children)
	}
	return shim, children
}

// TestSandboxLost checks that a pod whose sandbox and container were killed outside the
// agent runs in a new sandbox, and that its container was restarted exactly once.
func TestSandboxLost(t *testing.T) {
	r := newRig(t)
	pods, old := map[string]*corev1.Pod{}, map[string]string{}
	for _, name := range []string{"shim", "processes"} {
		pods[name] = r.create(simple("lost-"+name, "trap '' TERM; while true; do sleep 0.05; done"))
	}
	for name, p := range pods {
		r.awaitReady(p)
		old[name] = r.state(p).Sandbox().ID
		shim, pids := processes(t, old[name])
		signal := func(pid int, s syscall.Signal) {
			if err := syscall.Kill(pid, s); err != nil {
				t.Fatal(err)
			}
		}
		if name == "shim" {
			signal(shim, syscall.SIGKILL)
			continue
		}
		// The shim reports both exits at once. Otherwise the agent could restart the container
		// in its old sandbox between them, and once more after the second.
		signal(shim, syscall.SIGSTOP)
		for _, pid := range pids {
			signal(pid, syscall.SIGKILL)
		}
		signal(shim, syscall.SIGCONT)
	}
	for name, p := range pods {
		p = r.await(p, "is ready in another sandbox", func(p *corev1.Pod) bool {
			s := r.state(p)
			now := s.Latest("main")
			return now != nil && now.SandboxID != old[name] && s.Sandbox().ID == now.SandboxID && ready(p) &&
				strings.HasSuffix(containerStatus(p, "main").ContainerID, now.ID)
		})
		if n := containerStatus(p, "main").RestartCount; n != 1 {
			t.Errorf("%s: %d restarts", name, n)
		}
	}
}
