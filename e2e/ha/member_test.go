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

	"keelson.dev/proto/client"
)

// seat is a line of `keel member list`.
type seat struct{ name, etcd, lag, raft string }

// seats waits until every member is healthy and one leads: a member whose answer
// takes too long once, or an election, is no failure.
func (c *controlPlane) seats() (all []seat) {
	c.t.Helper()
	if err := until(time.Minute, func() (bool, error) {
		out, err := c.try("keel", "member", "list", "--home", c.home)
		if err != nil {
			return false, fmt.Errorf("%w: %s", err, out)
		}
		all = nil
		for _, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
			f := strings.Fields(line)
			if len(f) < 7 || f[6] != "true" {
				return false, fmt.Errorf("a member is not healthy:\n%s", out)
			}
			all = append(all, seat{name: f[0], etcd: f[2], lag: f[3], raft: f[4]})
		}
		return slices.ContainsFunc(all, func(s seat) bool { return s.etcd == "leader" }), fmt.Errorf("nobody leads:\n%s", out)
	}); err != nil {
		c.t.Fatalf("keel member list: %v", err)
	}
	return all
}

// keel runs keel on the cluster and ends the test if it fails.
func (c *controlPlane) keel(args ...string) string {
	c.t.Helper()
	began := time.Now()
	out, err := c.try("keel", append(args, "--home", c.home)...)
	if err != nil {
		c.t.Fatalf("keel %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	c.t.Logf("keel %s took %s\n%s", strings.Join(args, " "), time.Since(began).Round(time.Millisecond), out)
	return out
}

// load is writes under way, by the Go client.
type load struct {
	*controlPlane
	api  atomic.Pointer[client.Client]
	w    *writer
	stop chan struct{}
	wg   sync.WaitGroup
}

func (c *controlPlane) load(prefix string) *load {
	l := &load{controlPlane: c, w: &writer{}, stop: make(chan struct{})}
	l.api.Store(c.client())
	l.wg.Go(func() {
		l.w.run(l.stop, prefix, func(name string) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := client.For[*corev1.ConfigMap](l.api.Load()).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
			return err
		})
	})
	return l
}

// end stops the writes; all that was acknowledged must be there.
func (l *load) end() []string {
	l.t.Helper()
	close(l.stop)
	l.wg.Wait()
	l.holds(l.w.names)
	return l.w.names
}

// holds makes sure that ConfigMaps are there, as an apiserver that is a member now
// sees it.
func (c *controlPlane) holds(names []string) {
	c.t.Helper()
	list, _, err := client.For[*corev1.ConfigMap](c.client()).List(context.Background(), client.ListOptions{Namespace: "default"})
	if err != nil {
		c.t.Fatal(err)
	}
	there := map[string]bool{}
	for _, cm := range list {
		there[cm.Name] = true
	}
	lost := 0
	for _, name := range names {
		if !there[name] {
			lost++
		}
	}
	if lost > 0 || len(names) == 0 {
		c.t.Fatalf("%d of %d acknowledged writes are lost", lost, len(names))
	}
}

// during runs a step under load and says for how long nothing could be written.
func (l *load) during(what string, most time.Duration, step func()) {
	l.t.Helper()
	l.api.Store(l.client()) // with those who are there now
	began := time.Now()
	step()
	enough := l.w.acknowledged() + 3 // so that the gap has an end
	if err := until(time.Minute, func() (bool, error) { return l.w.acknowledged() >= enough, l.w.last }); err != nil {
		l.t.Fatalf("%s: nothing is written any more: %v", what, err)
	}
	gap := l.w.longest(began)
	l.t.Logf("%s: no write for %s", what, gap.Round(time.Millisecond))
	if gap > most {
		l.t.Errorf("%s: nothing could be written for %s, want %s at most", what, gap, most)
	}
}

// TestMembersComeAndGo adds a fourth apiserver, removes the one that leads, and
// replaces another, under writes: nothing that was acknowledged is lost.
func TestMembersComeAndGo(t *testing.T) {
	c := start(t)
	l := c.load("come-and-go")
	l.during("a fourth joins", 3*time.Second, func() { c.keel("member", "add") })
	log, err := os.ReadFile(filepath.Join(c.home, "log", "apiserver-3.log"))
	if err != nil || strings.Contains(string(log), "join token is not valid") {
		t.Errorf("it did not join with its token: %v", err)
	}
	all := c.seats()
	if len(all) != 4 || all[3].name != "apiserver-3" {
		t.Fatalf("after a fourth was added: %v", all)
	}
	for _, s := range all {
		if s.etcd == "learner" || s.etcd == "absent" || s.raft == "learner" || s.raft == "absent" {
			t.Fatalf("%s has no vote: %v", s.name, s)
		}
	}
	leader := all[slices.IndexFunc(all, func(s seat) bool { return s.etcd == "leader" })].name
	l.during("etcd's leader is removed", 3*time.Second, func() { c.keel("member", "remove", leader) })
	if all = c.seats(); len(all) != 3 || slices.ContainsFunc(all, func(s seat) bool { return s.name == leader }) {
		t.Fatalf("after %s was removed: %v", leader, all)
	}
	if _, err := os.Stat(filepath.Join(c.home, leader)); err == nil {
		t.Errorf("the data of %s is still there", leader)
	}
	// Repeated, as after an answer that was lost: it is refused by keel, which knows
	// no such member any more, and changes nothing.
	if out, err := c.try("keel", "member", "remove", leader, "--home", c.home); err == nil || !strings.Contains(out, "no member") {
		t.Errorf("removing %s again: %v %s", leader, err, out)
	}
	victim := all[0].name
	l.during(victim+" is replaced", 3*time.Second, func() { c.keel("member", "replace", victim) })
	if all = c.seats(); len(all) != 3 || slices.ContainsFunc(all, func(s seat) bool { return s.name == victim }) {
		t.Fatalf("after %s was replaced: %v", victim, all)
	}
	// One that is down is replaced too; without it, no other may go.
	list, err := c.apiservers()
	if err != nil {
		t.Fatal(err)
	}
	dead := c.halt(list[0])
	if out, err := c.try("keel", "member", "remove", list[1].Name, "--home", c.home); err == nil || !strings.Contains(out, list[0].Name) {
		t.Errorf("removing %s while %s is down: %v %s", list[1].Name, list[0].Name, err, out)
	}
	l.during("one that is down is replaced", 3*time.Second, func() { c.keel("member", "replace", list[0].Name) })
	dead()
	if all = c.seats(); len(all) != 3 {
		t.Fatalf("after %s was replaced: %v", list[0].Name, all)
	}
	l.end()
	// All are as they were told: they start again by what is on their disks.
	c.keel("down")
	began := time.Now()
	c.keel("up")
	t.Logf("served again after %s", time.Since(began).Round(time.Millisecond))
	c.holds(l.w.names)
	if all = c.seats(); len(all) != 3 {
		t.Fatalf("after all had stopped: %v", all)
	}
}

// halt stops an apiserver's process where it stands, as if its machine were gone;
// what it returns ends it for good.
func (c *controlPlane) halt(victim process) func() {
	c.t.Helper()
	if err := syscall.Kill(victim.PID, syscall.SIGSTOP); err != nil {
		c.t.Fatal(err)
	}
	resume := sync.OnceFunc(func() { _ = syscall.Kill(victim.PID, syscall.SIGCONT) })
	c.t.Cleanup(resume)
	return resume
}

// TestRecoverFromOneSurvivor loses the disks of two apiservers of three for good, and
// goes on from the third: nothing that it had is lost, and it grows to three again.
func TestRecoverFromOneSurvivor(t *testing.T) {
	c := start(t)
	l := c.load("before")
	if err := until(time.Minute, func() (bool, error) { return l.w.acknowledged() >= 50, l.w.last }); err != nil {
		t.Fatal(err)
	}
	names := l.end()
	// The survivor is one that had heard of everything.
	if err := until(time.Minute, func() (bool, error) {
		return !slices.ContainsFunc(c.seats(), func(s seat) bool { return s.lag != "0" }), nil
	}); err != nil {
		t.Fatal(err)
	}
	lost := c.halted("apiserver-0", "apiserver-1")
	// Nothing can be written any more, and that is said.
	if out, err := c.try("kubectl", "create", "configmap", "nobody-hears", "--request-timeout=5s"); err == nil {
		t.Fatalf("written without a majority: %s", out)
	}
	began := time.Now()
	c.keel("member", "recover", "--from", "apiserver-2")
	lost()
	c.holds(names)
	t.Logf("served again %s after the recovery began", time.Since(began).Round(time.Millisecond))
	if all := c.seats(); len(all) != 1 || all[0].name != "apiserver-2" {
		t.Fatalf("after the recovery: %v", all)
	}
	if out, err := c.try("kubectl", "create", "configmap", "after", "--from-literal=a=b"); err != nil {
		t.Fatal(out)
	}
	aside, err := filepath.Glob(filepath.Join(c.home, "apiserver-?.lost-*"))
	if err != nil || len(aside) != 2 {
		t.Errorf("moved aside: %v %v", aside, err)
	}
	l = c.load("between")
	for range 2 {
		l.during("another joins", 5*time.Second, func() { c.keel("member", "add") })
	}
	names = append(names, l.end()...)
	all := c.seats()
	if len(all) != 3 {
		t.Fatalf("members are %v", all)
	}
	// The three are a control plane like any: one of them may die, the survivor too.
	list, err := c.apiservers()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.Name == "apiserver-2" {
			c.kill(p)
		}
	}
	c.holds(append(names, "after"))
}

// halted stops several apiservers where they stand.
func (c *controlPlane) halted(names ...string) (end func()) {
	c.t.Helper()
	list, err := c.apiservers()
	if err != nil {
		c.t.Fatal(err)
	}
	var ends []func()
	for _, p := range list {
		if slices.Contains(names, p.Name) {
			ends = append(ends, c.halt(p))
		}
	}
	return func() {
		for _, f := range ends {
			f()
		}
	}
}

// only makes a client of one apiserver alone.
func (c *controlPlane) only(name string) *client.Client {
	c.t.Helper()
	list, err := c.apiservers()
	if err != nil {
		c.t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(p process) bool { return p.Name == name })
	if i < 0 {
		c.t.Fatalf("%s does not run", name)
	}
	return c.dial([]string{list[i].GRPC})
}

// TestFurtherApiserversUseTheMembers adds an apiserver that is no member: it serves
// both stores, and goes on whichever member is killed.
func TestFurtherApiserversUseTheMembers(t *testing.T) {
	c := start(t)
	c.keel("member", "add", "--client")
	if all := c.seats(); len(all) != 3 {
		t.Fatalf("it became a member: %v", all)
	}
	api := c.only("apiserver-3")
	maps, leases := client.For[*corev1.ConfigMap](api), client.For[*coordinationv1.Lease](api)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cache := client.NewCache(api, client.CacheOptions[*corev1.ConfigMap]{Namespace: "default"})
	var wg sync.WaitGroup
	wg.Go(func() { _ = cache.Run(ctx) })
	defer func() { cancel(); wg.Wait() }()
	<-cache.Synced()
	write := func(name string) error {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		meta := metav1.ObjectMeta{Namespace: "default", Name: name}
		if _, err := maps.Create(call, &corev1.ConfigMap{ObjectMeta: meta}); err != nil {
			return err
		}
		_, err := leases.Create(call, &coordinationv1.Lease{ObjectMeta: meta})
		return err
	}
	stop := make(chan struct{})
	var w writer
	wg.Go(func() { w.run(stop, "through", write) })
	for _, victim := range []string{"apiserver-0", "apiserver-1", "apiserver-2"} {
		list, err := c.apiservers()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		enough := w.acknowledged() + 20
		victimProcess := list[slices.IndexFunc(list, func(p process) bool { return p.Name == victim })]
		if err := syscall.Kill(victimProcess.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := until(time.Minute, func() (bool, error) { return w.acknowledged() >= enough, w.last }); err != nil {
			t.Fatalf("%s was killed, and nothing is written: %v", victim, err)
		}
		t.Logf("%s was killed: no write for %s", victim, w.longest(began).Round(time.Millisecond))
		if err := until(60*time.Second, func() (bool, error) {
			list, err := c.apiservers()
			return err == nil && !slices.ContainsFunc(list, func(p process) bool { return !p.Healthy || p.PID == victimProcess.PID }), err
		}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := until(time.Minute, func() (bool, error) { return cache.Len() >= w.acknowledged(), nil }); err != nil {
		t.Fatalf("its watch shows %d of %d: %v", cache.Len(), w.acknowledged(), err)
	}
	c.holds(w.names)
	c.keel("member", "remove", "apiserver-3")
	c.holds(w.names)
}

// TestOneApiserverGrowsToThree begins alone; afterwards the first one may go.
func TestOneApiserverGrowsToThree(t *testing.T) {
	c := begin(t, binaries(t), 1)
	if out, err := c.try("kubectl", "create", "configmap", "kept", "--from-literal=a=b"); err != nil {
		t.Fatal(out)
	}
	c.keel("member", "add")
	c.keel("member", "add")
	if all := c.seats(); len(all) != 3 {
		t.Fatalf("members are %v", all)
	}
	c.keel("member", "remove", "apiserver-0")
	out, err := c.try("kubectl", "get", "configmap", "kept", "-o", "jsonpath={.data.a}")
	if err != nil || out != "b" {
		t.Fatalf("without the first: %v %q", err, out)
	}
}
