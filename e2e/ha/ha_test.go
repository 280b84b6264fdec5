// Package ha_test hurts control planes of three apiservers while they are used: it kills,
// stops, replaces, removes, upgrades and restores members, and measures for how long
// nothing could be written. It knows no package of the services.
package ha_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/pace"
	"keelson.dev/e2e/internal/wait"
	"keelson.dev/e2e/internal/writer"
	"keelson.dev/proto/client"
)

var kills = flag.Int("kills", 6, "how many apiservers are killed, one after the other")

func TestMain(m *testing.M) { os.Exit(cluster.Main(m.Run)) }

// start starts a cluster of three apiservers.
func start(t *testing.T) *cluster.Cluster {
	t.Helper()
	return begin(t, cluster.New(t), 3)
}

// begin starts a cluster with that many apiservers, without a node that runs containers.
func begin(t *testing.T, c *cluster.Cluster, apiservers int) *cluster.Cluster {
	t.Helper()
	c.Patience = 5 * time.Minute // to replace a member that is down takes more than one minute
	began := time.Now()
	if _, err := c.Up(t.Context(), "--apiservers", strconv.Itoa(apiservers), "--nodes", "0", "--simulated-nodes", "3"); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d apiservers were ready after %s", apiservers, time.Since(began).Round(time.Millisecond))
	return c
}

// kill ends a process by a signal and waits until another one has taken its place and
// everything is healthy.
func kill(t *testing.T, c *cluster.Cluster, victim cluster.Process, signal syscall.Signal) {
	t.Helper()
	c.Kill(t, victim, signal)
	wait.For(t, time.Minute, victim.Name+" is replaced", func(ctx context.Context) error { return c.Replaced(ctx, victim) })
}

// TestApiserversDie kills one apiserver after the other, the leaders of etcd and raft
// among them, under writes through the Go client and kubectl.
func TestApiserversDie(t *testing.T) {
	c := start(t)
	api := c.Client(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := map[string]int{}
	var seenMu sync.Mutex
	cache := client.NewCache(api, client.CacheOptions[*corev1.ConfigMap]{Namespace: "default"})
	cache.Subscribe(func(ev client.Event[*corev1.ConfigMap]) {
		seenMu.Lock()
		defer seenMu.Unlock()
		if ev.Type == client.Added {
			seen[ev.Object.Name]++
		}
	})
	var watching, writing sync.WaitGroup
	watching.Go(func() { _ = cache.Run(ctx) })
	<-cache.Synced()

	load, stop := context.WithCancel(ctx)
	var byClient, byKubectl writer.Writer
	writing.Go(func() {
		byClient.Run(load, "client", func(name string) error {
			call, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return writer.ConfigMap(call, api, name)
		})
	})
	writing.Go(func() {
		byKubectl.Run(load, "kubectl", func(name string) error {
			_, err := c.Run(ctx, "kubectl", "create", "configmap", name, "--request-timeout=1s")
			return err
		})
	})
	var gaps []time.Duration // in time that the machine gave
	clock := pace.Start(t)
	for i := range *kills {
		list := c.Apiservers(t)
		victim := list[i%len(list)]
		began, before := time.Now(), byKubectl.Count()
		kill(t, c, victim, syscall.SIGKILL)
		// Three more, so that the gap has an end.
		wait.For(t, 30*time.Second, "kubectl writes again", byKubectl.Reaches(before+3))
		gap, kubectlGap := byClient.GapBy(began, clock.Given), byKubectl.GapBy(began, clock.Given)
		t.Logf("kill %d: %s, healthy after %s, no write for %s (Go client) and %s (kubectl)",
			i, victim.Name, time.Since(began).Round(time.Millisecond), gap.Round(time.Millisecond), kubectlGap.Round(time.Millisecond))
		gaps = append(gaps, gap, kubectlGap)
	}
	stop()
	writing.Wait()

	list, _, err := client.For[*corev1.ConfigMap](api).List(ctx, client.ListOptions{Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, c, slices.Concat(byClient.Names(), byKubectl.Names()))
	wait.For(t, time.Minute, "the watch catches up", reaches(cache.Len, len(list)))
	cancel()
	watching.Wait()
	for _, m := range list {
		if seen[m.Name] != 1 {
			t.Errorf("the watch saw the creation of %s %d times, want once", m.Name, seen[m.Name])
		}
	}
	slices.Sort(gaps)
	worst := gaps[len(gaps)-1]
	t.Logf("%d and %d writes; no write for %s in the median, %s at worst", byClient.Count(), byKubectl.Count(), gaps[len(gaps)/2], worst)
	if worst > 3*time.Second {
		t.Errorf("nothing could be written for %s, want 3 s at most", worst)
	}
}

// reaches is a condition for package wait: nil when count returns n or more.
func reaches(count func() int, n int) func(context.Context) error {
	return func(context.Context) error {
		if got := count(); got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	}
}
