package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

// A write at a member that is cut off from the others, but not from its clients, may take up to
// slowest before the member has noticed that, and up to prompt afterwards.
const (
	slowest = 20 * time.Second
	prompt  = 5 * time.Second
)

// TestCutOffMember cuts a member off from the others, but not from its clients. The member refuses
// their requests, so that they use another member: calls do not wait for it, and watches continue
// at another member without losing or repeating an event.
func TestCutOffMember(t *testing.T) {
	c := start(t, programs(t))
	t.Run("that leads etcd", func(t *testing.T) { cutOff(t, c, c.Leader(t.Context(), "lasting")) })
	t.Run("that leads raft", func(t *testing.T) { cutOff(t, c, c.Leader(t.Context(), "transient")) })
}

func cutOff(t *testing.T, c *Cluster, m *Member) {
	if m == nil {
		t.Fatal("no member leads")
	}
	all, err := c.Dial(c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	run := fmt.Sprintf("%s-%d", m.Name, time.Now().UnixNano())
	a, b := follow(t, all, configMaps, run), follow(t, all, leases, run)
	write := func(patience time.Duration) {
		t.Helper()
		a.write(t, patience)
		b.write(t, patience)
	}
	for range 6 { // enough of each kind for every member to receive some
		write(prompt)
	}
	a.seen(t)
	b.seen(t)

	for _, o := range c.Members {
		if o != m {
			c.Network.Set(m.Index, o.Index, Link{Cut: true})
			c.Network.Set(o.Index, m.Index, Link{Cut: true})
		}
	}
	defer c.Network.Heal()
	began := time.Now()
	// A client keeps sending requests to it on one connection.
	config, err := c.pki.admin()
	if err != nil {
		t.Fatal(err)
	}
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	defer hc.CloseIdleConnections()
	get := func(ctx context.Context) error {
		return request(ctx, hc, c.https()[m.Index], http.MethodGet, "/api/v1/namespaces/kube-system/configmaps", "application/json", nil, nil)
	}
	wait.For(t, 30*time.Second, m.Name+" refuses requests and is not ready", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, prompt)
		defer cancel()
		if err := get(ctx); !apierrors.IsServiceUnavailable(err) {
			return fmt.Errorf("the response is %w", err)
		}
		if err := m.Ready(ctx); err == nil {
			return errors.New("the member is still ready")
		}
		return nil
	})
	t.Logf("%s reported after %.1fs that it is cut off", m.Name, time.Since(began).Seconds())
	write(slowest) // the others may still elect a leader
	a.seen(t)
	b.seen(t)
	worst := time.Duration(0)
	for range 20 {
		began := time.Now()
		write(prompt)
		worst = max(worst, time.Since(began))
	}
	a.seen(t)
	b.seen(t)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), prompt)
		err := get(ctx)
		cancel()
		if seconds, ok := apierrors.SuggestsClientDelay(err); !ok || seconds != 1 || !apierrors.IsServiceUnavailable(err) {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	t.Logf("two writes through three members, of which one is cut off, took %.0f ms at most", worst.Seconds()*1000)

	c.Network.Heal()
	if err := c.Whole(t.Context(), wholeTime); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		write(slowest)
	}
	a.seen(t)
	b.seen(t)
}

// followed is a kind whose objects are written, and watched by six caches that start at different
// members.
type followed[T object] struct {
	kindOf[T]
	client *client.Client
	run    string
	caches []*client.Cache[T]
	names  []string

	mu       sync.Mutex
	repeated []string
}

func follow[T object](t *testing.T, c *client.Client, k kindOf[T], run string) *followed[T] {
	f := &followed[T]{kindOf: k, client: c, run: run}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for i := range 6 {
		cache := client.NewCache(c, client.CacheOptions[T]{Namespace: metav1.NamespaceDefault, LabelSelector: "run=" + run})
		added := map[string]bool{}
		cache.Subscribe(func(ev client.Event[T]) {
			if ev.Type == client.Bookmark {
				return
			}
			name := ev.Object.GetName()
			f.mu.Lock()
			defer f.mu.Unlock()
			if added[name] || ev.Type != client.Added {
				f.repeated = append(f.repeated, fmt.Sprintf("cache %d: %s of %s", i, ev.Type, name))
			}
			added[name] = true
		})
		running.Go(func() { _ = cache.Run(ctx) })
		f.caches = append(f.caches, cache)
		<-cache.Synced()
	}
	return f
}

// write creates an object.
func (f *followed[T]) write(t *testing.T, patience time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	name := fmt.Sprintf("%s-%d", f.run, len(f.names))
	obj := f.make(metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name, Labels: map[string]string{"run": f.run}}, "x")
	began := time.Now()
	if _, err := client.For[T](f.client).Create(ctx, obj); err != nil {
		t.Fatalf("create %s %s, after %s: %v", f.kind, name, time.Since(began).Round(time.Millisecond), err)
	}
	f.names = append(f.names, name)
}

// seen waits until all caches contain all objects that were written.
func (f *followed[T]) seen(t *testing.T) {
	t.Helper()
	wait.For(t, time.Minute, "all caches have what was written", func(context.Context) error {
		for i, cache := range f.caches {
			for _, name := range f.names {
				if _, ok := cache.Get(metav1.NamespaceDefault, name); !ok {
					return fmt.Errorf("cache %d of %s has no %s", i, f.kind, name)
				}
			}
		}
		return nil
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.repeated) > 0 {
		t.Fatalf("%s: %v", f.kind, f.repeated)
	}
}
