package ha_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/pace"
	"keelson.dev/e2e/internal/wait"
	"keelson.dev/e2e/internal/writer"
	"keelson.dev/proto/client"
)

// load is writes under way, by the Go client.
type load struct {
	t   *testing.T
	c   *cluster.Cluster
	api atomic.Pointer[client.Client]
	writer.Writer
	// stop ends the writes.
	stop func()
}

func startLoad(t *testing.T, c *cluster.Cluster, prefix string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, c: c}
	l.api.Store(c.Client(t))
	var writing sync.WaitGroup
	writing.Go(func() {
		l.Run(ctx, prefix, func(name string) error {
			call, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return writer.ConfigMap(call, l.api.Load(), name)
		})
	})
	l.stop = func() { cancel(); writing.Wait() }
	t.Cleanup(l.stop)
	return l
}

// end stops the writes; all that were acknowledged must be there.
func (l *load) end() []string {
	l.t.Helper()
	l.stop()
	holds(l.t, l.c, l.Names())
	return l.Names()
}

// holds checks that ConfigMaps exist, as an apiserver that is a member now sees it.
func holds(t *testing.T, c *cluster.Cluster, names []string) {
	t.Helper()
	lost, err := writer.Lost(t.Context(), c.Client(t), names...)
	if err != nil {
		t.Fatal(err)
	}
	if len(lost) > 0 || len(names) == 0 {
		t.Fatalf("%d of %d acknowledged writes are lost: %v", len(lost), len(names), lost)
	}
}

// during runs a step under load, and fails if nothing could be written for longer than most.
func (l *load) during(what string, most time.Duration, step func()) {
	l.t.Helper()
	l.api.Store(l.c.Client(l.t)) // of the members that there are now
	clock, began := pace.Start(l.t), time.Now()
	step()
	// Three more, so that the gap has an end.
	wait.For(l.t, time.Minute, what+": writes go on", l.Reaches(l.Count()+3))
	gap := l.GapBy(began, clock.Given)
	l.t.Logf("%s: no write for %s, of which the machine gave %s", what, l.Gap(began).Round(time.Millisecond), gap.Round(time.Millisecond))
	if gap > most {
		l.t.Errorf("%s: nothing could be written for %s, want %s at most", what, gap, most)
	}
}

// TestMembersComeAndGo adds a fourth apiserver, removes the one that leads, and
// replaces another, under writes: no acknowledged write is lost.
func TestMembersComeAndGo(t *testing.T) {
	c := start(t)
	l := startLoad(t, c, "come-and-go")
	l.during("a fourth joins", 3*time.Second, func() { c.Keel(t, "member", "add") })
	log, err := os.ReadFile(filepath.Join(c.Home, "log", "apiserver-3.log"))
	if err != nil || strings.Contains(string(log), "join token is not valid") {
		t.Errorf("apiserver-3 did not join with its token: %v", err)
	}
	all := c.Settled(t)
	if len(all) != 4 || all[3].Name != "apiserver-3" {
		t.Fatalf("after a fourth was added the members are %v", all)
	}
	for _, s := range all {
		if s.Etcd == "learner" || s.Etcd == "absent" || s.Raft == "learner" || s.Raft == "absent" {
			t.Fatalf("%s has no vote: %v", s.Name, s)
		}
	}
	leader := all[slices.IndexFunc(all, func(m cluster.Member) bool { return m.Etcd == "leader" })].Name
	l.during("etcd's leader is removed", 3*time.Second, func() { c.Keel(t, "member", "remove", leader) })
	if all = c.Settled(t); len(all) != 3 || slices.ContainsFunc(all, named(leader)) {
		t.Fatalf("after %s was removed: %v", leader, all)
	}
	if _, err := os.Stat(filepath.Join(c.Home, leader)); err == nil {
		t.Errorf("the data of %s is still there", leader)
	}
	// Repeated, as after an answer that was lost, it is refused: there is no such member.
	if out, err := c.Run(t.Context(), "keel", "member", "remove", leader, "--home", c.Home); err == nil || !strings.Contains(err.Error(), "no member") {
		t.Errorf("removing %s again: %v %s", leader, err, out)
	}
	victim := all[0].Name
	l.during(victim+" is replaced", 3*time.Second, func() { c.Keel(t, "member", "replace", victim) })
	if all = c.Settled(t); len(all) != 3 || slices.ContainsFunc(all, named(victim)) {
		t.Fatalf("after %s was replaced: %v", victim, all)
	}
	// A member that is down can be replaced; while it is down, no other may be removed.
	list := c.Apiservers(t)
	dead := c.Stop(t, list[0])
	if out, err := c.Run(t.Context(), "keel", "member", "remove", list[1].Name, "--home", c.Home); err == nil || !strings.Contains(err.Error(), list[0].Name) {
		t.Errorf("removing %s while %s is down: %v %s", list[1].Name, list[0].Name, err, out)
	}
	l.during("a member that is down is replaced", 3*time.Second, func() { c.Keel(t, "member", "replace", list[0].Name) })
	dead()
	if all = c.Settled(t); len(all) != 3 {
		t.Fatalf("after %s was replaced: %v", list[0].Name, all)
	}
	l.end()
	// They start again from what is on their disks.
	c.Keel(t, "down")
	began := time.Now()
	c.Keel(t, "up")
	t.Logf("served again after %s", time.Since(began).Round(time.Millisecond))
	holds(t, c, l.Names())
	if all = c.Settled(t); len(all) != 3 {
		t.Fatalf("after all had stopped the members are %v", all)
	}
}

// named reports whether a member has a name.
func named(name string) func(cluster.Member) bool {
	return func(m cluster.Member) bool { return m.Name == name }
}

// TestRecoverFromOneSurvivor loses two apiservers of three with their disks, and
// recovers from the third: nothing that it had is lost, and it grows to three again.
func TestRecoverFromOneSurvivor(t *testing.T) {
	c := start(t)
	l := startLoad(t, c, "before")
	wait.For(t, time.Minute, "the load writes", l.Reaches(50))
	names := l.end()
	wait.For(t, time.Minute, "the survivor has everything", func(ctx context.Context) error {
		all, err := c.Members(ctx)
		if slices.ContainsFunc(all, func(m cluster.Member) bool { return m.Lag != "0" }) {
			err = fmt.Errorf("the members are %v", all)
		}
		return err
	})
	lost := []func(){c.Stop(t, c.Process(t, "apiserver-0")), c.Stop(t, c.Process(t, "apiserver-1"))}
	// Nothing can be written any more, and the write reports it.
	if out, err := c.Run(t.Context(), "kubectl", "create", "configmap", "nobody-hears", "--request-timeout=5s"); err == nil {
		t.Fatalf("written without a majority: %s", out)
	}
	began := time.Now()
	c.Keel(t, "member", "recover", "--from", "apiserver-2")
	for _, resume := range lost {
		resume()
	}
	holds(t, c, names)
	t.Logf("served again %s after the recovery began", time.Since(began).Round(time.Millisecond))
	if all := c.Settled(t); len(all) != 1 || all[0].Name != "apiserver-2" {
		t.Fatalf("after the recovery the members are %v", all)
	}
	c.Kubectl(t, "create", "configmap", "after", "--from-literal=a=b")
	aside, err := filepath.Glob(filepath.Join(c.Home, "apiserver-?.lost-*"))
	if err != nil || len(aside) != 2 {
		t.Errorf("directories that were moved aside: %v, %v; want two", aside, err)
	}
	l = startLoad(t, c, "between")
	for range 2 {
		l.during("another joins", 5*time.Second, func() { c.Keel(t, "member", "add") })
	}
	names = append(names, l.end()...)
	all := c.Settled(t)
	if len(all) != 3 {
		t.Fatalf("members are %v", all)
	}
	// The three tolerate the loss of one again, also of the survivor.
	kill(t, c, c.Process(t, "apiserver-2"), syscall.SIGKILL)
	holds(t, c, append(names, "after"))
}

// TestFurtherApiserversUseTheMembers adds an apiserver that is not a member: it serves
// both stores, and keeps serving whichever member is killed.
func TestFurtherApiserversUseTheMembers(t *testing.T) {
	c := start(t)
	c.Keel(t, "member", "add", "--client")
	if all := c.Settled(t); len(all) != 3 {
		t.Fatalf("apiserver-3 became a member: %v", all)
	}
	api := c.Dial(t, []string{c.Process(t, "apiserver-3").GRPC})
	leases := client.For[*coordinationv1.Lease](api)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cache := client.NewCache(api, client.CacheOptions[*corev1.ConfigMap]{Namespace: "default"})
	var wg sync.WaitGroup
	wg.Go(func() { _ = cache.Run(ctx) })
	defer func() { cancel(); wg.Wait() }()
	<-cache.Synced()
	write := func(name string) error {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := writer.ConfigMap(call, api, name); err != nil {
			return err
		}
		_, err := leases.Create(call, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
		return err
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	var w writer.Writer
	wg.Go(func() { w.Run(load, "through", write) })
	for _, victim := range []string{"apiserver-0", "apiserver-1", "apiserver-2"} {
		p := c.Process(t, victim)
		began, enough := time.Now(), w.Count()+20
		c.Kill(t, p, syscall.SIGKILL)
		wait.For(t, time.Minute, "writes go on after "+victim+" was killed", w.Reaches(enough))
		t.Logf("%s was killed: no write for %s", victim, w.Gap(began).Round(time.Millisecond))
		wait.For(t, time.Minute, victim+" is replaced", func(ctx context.Context) error { return c.Replaced(ctx, p) })
	}
	stop()
	wait.For(t, time.Minute, "the watch of apiserver-3 catches up", func(ctx context.Context) error { return reaches(cache.Len, w.Count())(ctx) })
	holds(t, c, w.Names())
	c.Keel(t, "member", "remove", "apiserver-3")
	holds(t, c, w.Names())
}

// TestOneApiserverGrowsToThree adds two apiservers to one, and then removes the first.
func TestOneApiserverGrowsToThree(t *testing.T) {
	c := begin(t, cluster.New(t), 1)
	c.Kubectl(t, "create", "configmap", "kept", "--from-literal=a=b")
	c.Keel(t, "member", "add")
	c.Keel(t, "member", "add")
	if all := c.Settled(t); len(all) != 3 {
		t.Fatalf("members are %v", all)
	}
	c.Keel(t, "member", "remove", "apiserver-0")
	if got := c.Kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Fatalf("without the first the ConfigMap has %q, want b", got)
	}
}
