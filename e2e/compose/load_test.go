package compose_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"keelson.dev/proto/client"
)

// dial makes a Go client of all apiservers, with the identity of the kubeconfig.
func (e *engine) dial(t *testing.T) *client.Client {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", e.path("kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	// As the compose file publishes them.
	api, err := client.Dial(client.Config{
		Endpoints: []string{"127.0.0.1:6450", "127.0.0.1:6451", "127.0.0.1:6452"}, UserAgent: "compose-test", TLS: tls,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	return api
}

// writer writes one object after the other and remembers what was acknowledged,
// and when.
type writer struct {
	mu    sync.Mutex
	names []string
	times []time.Time
	last  error
}

func (w *writer) run(stop <-chan struct{}, prefix string, write func(name string) error) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprintf("%s-%d", prefix, n)
		err := write(name)
		w.mu.Lock()
		if err == nil {
			w.names, w.times = append(w.names, name), append(w.times, time.Now())
		} else {
			w.last = err
		}
		w.mu.Unlock()
	}
}

// longest is the longest time between two acknowledged writes of which the second
// came after from.
func (w *writer) longest(from time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var most time.Duration
	for i := 1; i < len(w.times); i++ {
		if w.times[i].After(from) {
			most = max(most, w.times[i].Sub(w.times[i-1]))
		}
	}
	return most
}

func (w *writer) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.names)
}

func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// load writes through the Go client and through kubectl until it is stopped.
type load struct {
	byClient, byKubectl writer
	maps                client.Resource[*corev1.ConfigMap]
	stop                func()
}

func (e *engine) load(t *testing.T) *load {
	t.Helper()
	l := &load{maps: client.For[*corev1.ConfigMap](e.dial(t))}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	// Both pause a little: what they measure runs on the same machine.
	writers.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		l.byClient.run(stop, "client", func(name string) error {
			<-tick.C
			call, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := l.maps.Create(call, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}})
			return err
		})
	})
	writers.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		l.byKubectl.run(stop, "kubectl", func(name string) error {
			<-tick.C
			_, err := e.run(10*time.Second, "kubectl", "create", "configmap", name, "--request-timeout=1s")
			return err
		})
	})
	l.stop = sync.OnceFunc(func() { close(stop); writers.Wait() })
	t.Cleanup(l.stop)
	return l
}

// goOn waits until both have written again since from, so that a gap has its end,
// and returns both gaps.
func (l *load) goOn(t *testing.T, what string, from time.Time) (byClient, byKubectl time.Duration) {
	t.Helper()
	for name, w := range map[string]*writer{"the Go client": &l.byClient, "kubectl": &l.byKubectl} {
		before := w.acknowledged()
		eventually(t, time.Minute, name+" writes after "+what, func() error {
			if w.acknowledged() < before+2 {
				return fmt.Errorf("the last failure: %w", w.failure())
			}
			return nil
		})
	}
	return l.byClient.longest(from), l.byKubectl.longest(from)
}

// verify stops the load and finds every acknowledged write.
func (l *load) verify(t *testing.T) {
	t.Helper()
	l.stop()
	list, _, err := l.maps.List(context.Background(), client.ListOptions{Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, m := range list {
		there[m.Name] = true
	}
	for _, name := range slices.Concat(l.byClient.names, l.byKubectl.names) {
		if !there[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	t.Logf("%d writes by the Go client and %d by kubectl were acknowledged; all are there", len(l.byClient.names), len(l.byKubectl.names))
}
