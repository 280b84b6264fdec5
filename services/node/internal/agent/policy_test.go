package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/policy"
)

// gate admits pods when it is opened, and records what it is given.
type gate struct {
	mu      sync.Mutex
	open    bool
	known   []policy.Local
	runs    map[types.UID]string
	updates map[types.UID]map[string]string
}

func newGate() *gate {
	return &gate{runs: map[types.UID]string{}, updates: map[types.UID]map[string]string{}}
}

func (g *gate) do(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *gate) Known(running []policy.Local) { g.do(func() { g.known = running }) }

func (g *gate) Update(p *corev1.Pod, addr string) {
	g.do(func() { g.runs[p.UID], g.updates[p.UID] = addr, p.Labels })
}

func (g *gate) Admit(_ context.Context, p *corev1.Pod, addr string) (err error) {
	g.do(func() {
		if !g.open {
			err = errors.New("network policies are not in force")
		}
		g.runs[p.UID] = addr
	})
	return err
}

func (g *gate) Forget(uid types.UID) { g.do(func() { delete(g.runs, uid) }) }

func (g *gate) addr(uid types.UID) (addr string) {
	g.do(func() { addr = g.runs[uid] })
	return addr
}

// TestContainersWaitForPolicies checks that no container starts before the policies of its pod are in
// force, that changes of labels are passed on, and what a restarted agent finds.
func TestContainersWaitForPolicies(t *testing.T) {
	r := newRig(t)
	r.stop()
	g := newGate()
	r.policies = g
	r.start()
	p := r.create(simple("held", "sleep 3600"))
	p = r.await(p, "held back", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Message, "network policies are not in force")
	})
	if n := len(r.state(p).Containers); n != 0 {
		t.Fatalf("%d containers were created before the policies were in force", n)
	}
	g.do(func() { g.open = true })
	r.awaitReady(p)
	if got, want := g.addr(p.UID), r.state(p).Sandbox().IPs[0]; got != want {
		t.Errorf("the address is %q, want %q", got, want)
	}
	if _, err := client.For[*corev1.Pod](r.client).Patch(t.Context(), p.Namespace, p.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"new"}}}`)); err != nil {
		t.Fatal(err)
	}
	r.await(p, "the labels are passed on", func(p *corev1.Pod) (ok bool) {
		g.do(func() { ok = g.updates[p.UID]["app"] == "new" })
		return ok
	})
	r.stop()
	r.start()
	r.await(p, "known after a restart", func(p *corev1.Pod) (ok bool) {
		g.do(func() {
			ok = len(g.known) == 1 && g.known[0].UID() == p.UID && !g.known[0].Unknown && g.known[0].Pod.Labels["app"] == "new"
		})
		return ok
	})
	r.delete(p)
	r.awaitGone(p)
	if addr := g.addr(p.UID); addr != "" {
		t.Errorf("a pod that is gone is still known, at %s", addr)
	}
}
