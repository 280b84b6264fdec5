package simulated

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// begin runs a simulation until the test ends.
func begin(t *testing.T, c *client.Client, nodes int) *Simulation {
	t.Helper()
	s := New(Config{Client: c, Nodes: nodes, Prefix: "sim", Heartbeat: 200 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Ready():
	case <-time.After(time.Minute):
		t.Fatal("the simulation is not ready")
	}
	return s
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("timed out waiting until " + what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func newPod(name, node string, policy corev1.RestartPolicy) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "x"}},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: policy,
			Containers: []corev1.Container{{Name: "main", Image: "image"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
}

func TestPods(t *testing.T) {
	ctx := context.Background()
	c := clienttest.Start(t)
	begin(t, c, 20)
	pods := client.For[*corev1.Pod](c)
	job := newPod("job", "sim-3", corev1.RestartPolicyNever)
	job.Annotations = map[string]string{DurationAnnotation: "50ms"}
	foreign := newPod("foreign", "real-node", corev1.RestartPolicyAlways)
	for _, p := range []*corev1.Pod{newPod("web", "sim-7", corev1.RestartPolicyAlways), job, foreign} {
		if _, err := pods.Create(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	get := func(name string) *corev1.Pod {
		p, err := pods.Get(ctx, "default", name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	until(t, "web runs", func() bool { return get("web").Status.Phase == corev1.PodRunning })
	until(t, "the job succeeds", func() bool { return get("job").Status.Phase == corev1.PodSucceeded })
	web := get("web")
	if !strings.HasPrefix(web.Status.ContainerStatuses[0].ContainerID, "simulated://") || web.Labels["app"] != "x" || web.Status.PodIP == "" {
		t.Errorf("web: %+v %v", web.Status, web.Labels)
	}
	for _, cond := range web.Status.Conditions {
		if cond.Status != corev1.ConditionTrue {
			t.Errorf("web: %s is %s", cond.Type, cond.Status)
		}
	}
	if got := get("foreign").Status.Phase; got != corev1.PodPending {
		t.Errorf("a pod of another node got phase %s", got)
	}
	if err := pods.Delete(ctx, "default", "web"); err != nil {
		t.Fatal(err)
	}
	until(t, "web is gone", func() bool {
		_, err := pods.Get(ctx, "default", "web")
		return err != nil
	})
}

func TestNodes(t *testing.T) {
	ctx := context.Background()
	c := clienttest.Start(t)
	begin(t, c, 30)
	nodes := client.For[*corev1.Node](c)
	list, _, err := nodes.List(ctx, client.ListOptions{LabelSelector: Label + "=true"})
	if err != nil || len(list) != 30 {
		t.Fatalf("nodes: %d, %v", len(list), err)
	}
	leases := client.For[*coordinationv1.Lease](c)
	first := map[string]time.Time{}
	until(t, "every node has a Lease", func() bool {
		all, _, err := leases.List(ctx, client.ListOptions{Namespace: corev1.NamespaceNodeLease})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			if _, ok := first[l.Name]; !ok {
				first[l.Name] = l.Spec.RenewTime.Time
			}
		}
		return len(all) == 30
	})
	until(t, "every Lease is renewed", func() bool {
		all, _, err := leases.List(ctx, client.ListOptions{Namespace: corev1.NamespaceNodeLease})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			if !l.Spec.RenewTime.After(first[l.Name]) {
				return false
			}
		}
		return true
	})
	// A controller marks a node as unknown, and the node is set ready again.
	n, err := nodes.Get(ctx, "", "sim-4")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n.Status.Conditions {
		n.Status.Conditions[i].Status = corev1.ConditionUnknown
	}
	if _, err := nodes.UpdateStatus(ctx, n); err != nil {
		t.Fatal(err)
	}
	until(t, "the node is ready again", func() bool {
		n, err := nodes.Get(ctx, "", "sim-4")
		return err == nil && ready(n)
	})
}

// TestMemory bounds the memory that a simulated pod uses in this process.
func TestMemory(t *testing.T) {
	ctx := context.Background()
	c := clienttest.Start(t)
	s := begin(t, c, 100)
	const count = 1000
	var writes []client.Write
	for i := range count {
		p := newPod(fmt.Sprintf("p-%d", i), fmt.Sprintf("sim-%d", i%100), corev1.RestartPolicyAlways)
		p.Annotations = map[string]string{"note": strings.Repeat("x", 200)}
		for k := range 20 {
			p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", k), Value: strings.Repeat("v", 100)})
		}
		writes = append(writes, client.CreateWrite(p))
	}
	if _, err := c.Commit(ctx, writes...); err != nil {
		t.Fatal(err)
	}
	until(t, "all pods run", func() bool {
		n := 0
		for _, p := range s.pods.List() {
			if p.Status.Phase == corev1.PodRunning {
				n++
			}
		}
		return n == count
	})
	for _, p := range s.pods.List() {
		if size := p.Size(); size > 3000 {
			t.Fatalf("a simulated pod keeps %d bytes", size)
		}
		if len(p.Spec.Containers[0].Env) > 0 {
			t.Fatal("a simulated pod keeps its environment")
		}
	}
	runtime.KeepAlive(s)
}

func TestNodesAreSpreadOverZones(t *testing.T) {
	s := New(Config{Nodes: 3, Prefix: "sim", Zones: []string{"a", "b"}})
	for i, zone := range []string{"a", "b", "a"} {
		if got := s.node(i).Labels[corev1.LabelTopologyZone]; got != zone {
			t.Errorf("node %d is in zone %q, want %q", i, got, zone)
		}
	}
}

// An idle process with few nodes wakes up for their renewals only.
func TestBeat(t *testing.T) {
	for _, c := range []struct {
		nodes int
		want  time.Duration
	}{{0, 10 * time.Second}, {1, 10 * time.Second}, {3, 3333333333}, {1000, 10 * time.Millisecond}, {100_000, 10 * time.Millisecond}} {
		if got := beat(10*time.Second, c.nodes); got != c.want {
			t.Errorf("%d nodes: %v, want %v", c.nodes, got, c.want)
		}
	}
}
