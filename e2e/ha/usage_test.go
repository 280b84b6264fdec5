package ha_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

// usage is load of all kinds of requests, through the Go client, through kubectl and on
// connections of their own, while the cluster's processes are restarted.
type usage struct {
	c      *cluster.Cluster
	api    *client.Client
	cancel context.CancelFunc
	wg     sync.WaitGroup

	byClient, byKubectl, byConnection counter
	// lone is true if a balancer without a second one is replaced, which leaves its
	// address without a listener for some milliseconds.
	lone bool
	// created are the names of the objects that were created; seen and vanished are how
	// often the watch showed each of them as added and as deleted.
	mu             sync.Mutex
	created        map[string]bool
	seen, vanished map[string]int
}

// counter counts requests and failures, and keeps the first ten failures.
type counter struct {
	all, failed atomic.Int64
	mu          sync.Mutex
	first       []string
}

// count notes a request; it returns whether that succeeded.
func (n *counter) count(what string, err error) bool {
	n.all.Add(1)
	if err == nil {
		return true
	}
	n.failed.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.first) < 10 {
		n.first = append(n.first, time.Now().Format("15:04:05.000 ")+what+": "+err.Error())
	}
	return false
}

// startUsage begins the load; check ends it.
func startUsage(t *testing.T, c *cluster.Cluster) *usage {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &usage{c: c, api: c.Client(t), cancel: cancel, created: map[string]bool{}, seen: map[string]int{}, vanished: map[string]int{}}
	cache := client.NewCache(l.api, client.CacheOptions[*corev1.ConfigMap]{Namespace: "default", LabelSelector: "load=true"})
	cache.Subscribe(func(ev client.Event[*corev1.ConfigMap]) {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch ev.Type {
		case client.Added:
			l.seen[ev.Object.Name]++
		case client.Deleted:
			l.vanished[ev.Object.Name]++
		}
	})
	watched, stopWatch := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { _ = cache.Run(watched) })
	t.Cleanup(func() { stopWatch(); watching.Wait() })
	<-cache.Synced()
	for i := range 3 {
		l.wg.Go(func() { l.client(ctx, i) })
	}
	for i := range 2 {
		l.wg.Go(func() { l.kubectl(ctx, i) })
	}
	server := c.Kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
	config := c.TLS(t)
	for i := range 2 {
		l.wg.Go(func() { l.connections(ctx, i, server, config) })
	}
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

func (l *usage) made(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.created[name] = true
}

// client creates, reads, lists, changes and deletes objects until ctx ends.
func (l *usage) client(ctx context.Context, worker int) {
	maps := client.For[*corev1.ConfigMap](l.api)
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("go-%d-%d", worker, n)
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		obj, err := maps.Create(call, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"load": "true"}}})
		if l.byClient.count("create "+name, err) {
			l.made(name)
			_, err = maps.Get(call, "default", name)
			l.byClient.count("get "+name, err)
			_, _, err = maps.List(call, client.ListOptions{Namespace: "default", Limit: 20})
			l.byClient.count("list", err)
			obj.Data = map[string]string{"a": "b"}
			_, err = maps.Update(call, obj)
			l.byClient.count("update "+name, err)
			results, err := l.api.Commit(call, client.CreateWrite(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + "-b"}}))
			if err == nil {
				err = results[0].Err
			}
			if l.byClient.count("commit "+name, err) {
				l.byClient.count("delete "+name+"-b", maps.Delete(call, "default", name+"-b"))
			}
			if n%2 == 0 {
				l.byClient.count("delete "+name, maps.Delete(call, "default", name))
			}
		}
		cancel()
		wait.Pause(ctx, 20*time.Millisecond)
	}
}

// kubectl does the same with one process for each request.
func (l *usage) kubectl(ctx context.Context, worker int) {
	run := func(args ...string) bool {
		_, err := l.c.Run(context.WithoutCancel(ctx), "kubectl", args...)
		return l.byKubectl.count(strings.Join(args, " "), err)
	}
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("kubectl-%d-%d", worker, n)
		if !run("create", "configmap", name) {
			continue
		}
		run("label", "configmap", name, "load=true")
		run("get", "configmap", name, "-o", "name")
		run("get", "configmaps", "--chunk-size", "20", "-o", "name")
		run("delete", "configmap", name, "--wait=false")
	}
}

// connections makes each request on a connection of its own, as kubectl does, but without
// a process, so that there are many.
func (l *usage) connections(ctx context.Context, worker int, server string, config *tls.Config) {
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("https-%d-%d", worker, n)
		at := server + "/api/v1/namespaces/default/configmaps"
		body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"labels":{"load":"true"}}}`, name)
		for _, r := range []struct{ method, url, body string }{
			{http.MethodPost, at, body}, {http.MethodGet, at + "/" + name, ""}, {http.MethodGet, at + "?limit=20", ""}, {http.MethodDelete, at + "/" + name, ""},
		} {
			err := once(context.WithoutCancel(ctx), config, r.method, r.url, r.body)
			if !l.byConnection.count(r.method+" "+r.url, err) {
				break
			}
			if r.body != "" {
				l.made(name)
			}
		}
		wait.Pause(ctx, 10*time.Millisecond)
	}
}

// once makes one request on a new connection.
func once(ctx context.Context, config *tls.Config, method, url, body string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	transport := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return err
}

// check ends the load and checks the share of failed requests and what the watch saw.
func (l *usage) check(t *testing.T) {
	t.Helper()
	l.cancel()
	l.wg.Wait()
	for _, f := range l.byClient.first {
		t.Errorf("Go client: %s", f)
	}
	t.Logf("Go client: %d of %d requests failed", l.byClient.failed.Load(), l.byClient.all.Load())
	for what, n := range map[string]*counter{"kubectl": &l.byKubectl, "requests on connections of their own": &l.byConnection} {
		all, failed := n.all.Load(), n.failed.Load()
		t.Logf("%s: %d of %d failed", what, failed, all)
		for _, f := range n.first {
			t.Logf("%s: %s", what, f)
		}
		if n == &l.byConnection && l.lone {
			continue
		}
		if failed*1000 > all {
			t.Errorf("%s: %d of %d failed, want 1 in 1,000 at most", what, failed, all)
		}
	}
	list, _, err := client.For[*corev1.ConfigMap](l.api).List(context.Background(), client.ListOptions{Namespace: "default", LabelSelector: "load=true"})
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]bool{}
	for _, o := range list {
		left[o.Name] = true
	}
	wait.For(t, time.Minute, "the watch catches up", func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for name := range l.created {
			if l.seen[name] == 0 || !left[name] && l.vanished[name] == 0 {
				return fmt.Errorf("it has not seen what became of %s", name)
			}
		}
		return nil
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.created {
		gone := 1
		if left[name] {
			gone = 0
		}
		if l.seen[name] != 1 || l.vanished[name] != gone {
			t.Errorf("the watch saw %s added %d times and deleted %d times, want 1 and %d", name, l.seen[name], l.vanished[name], gone)
		}
	}
}
