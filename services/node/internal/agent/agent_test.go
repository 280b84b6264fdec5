package agent

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const forever = "trap 'exit 0' TERM; while true; do sleep 0.1; done"

func TestPodRuns(t *testing.T) {
	r := newRig(t)
	began := time.Now()
	p := r.create(simple("first", "echo hello; "+forever))
	p = r.awaitReady(p)
	t.Logf("ready after %v", time.Since(began))
	if p.Status.Phase != corev1.PodRunning || p.Status.PodIP == "" || p.Status.HostIP != "10.89.0.11" || p.Status.StartTime == nil {
		t.Errorf("status: %+v", p.Status)
	}
	if got := r.exec(p, "main", "cat", "/etc/hosts"); !strings.Contains(got, p.Status.PodIP+"\tfirst") {
		t.Errorf("/etc/hosts: %q", got)
	}
	r.delete(p)
	r.awaitGone(p)
}
