package compose_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"keelson.dev/e2e/internal/pace"
	"keelson.dev/e2e/internal/wait"
	"keelson.dev/e2e/internal/writer"
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

// load writes through the Go client and through kubectl until it is stopped.
type load struct {
	byClient, byKubectl writer.Writer
	api                 *client.Client
	clock               *pace.Clock
	stop                func()
}

func (e *engine) load(t *testing.T) *load {
	t.Helper()
	l := &load{api: e.dial(t), clock: pace.Start(t)}
	ctx, cancel := context.WithCancel(context.Background())
	var writing sync.WaitGroup
	// Both pause a little, because what they measure runs on the same machine.
	writing.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		l.byClient.Run(ctx, "client", func(name string) error {
			<-tick.C
			call, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return writer.ConfigMap(call, l.api, name)
		})
	})
	writing.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		l.byKubectl.Run(ctx, "kubectl", func(name string) error {
			<-tick.C
			_, err := e.run(context.Background(), 10*time.Second, "kubectl", "create", "configmap", name, "--request-timeout=1s")
			return err
		})
	})
	l.stop = sync.OnceFunc(func() { cancel(); writing.Wait() })
	t.Cleanup(l.stop)
	return l
}

// goOn waits until both have written again, so that the gap has an end, and returns the
// gaps since from, in time that the machine gave.
func (l *load) goOn(t *testing.T, what string, from time.Time) (byClient, byKubectl time.Duration) {
	t.Helper()
	for name, w := range map[string]*writer.Writer{"the Go client": &l.byClient, "kubectl": &l.byKubectl} {
		wait.For(t, time.Minute, name+" writes after "+what, w.Reaches(w.Count()+2))
	}
	return l.byClient.GapBy(from, l.clock.Given), l.byKubectl.GapBy(from, l.clock.Given)
}

// verify stops the load and checks that no acknowledged write is lost.
func (l *load) verify(t *testing.T) {
	t.Helper()
	l.stop()
	lost, err := writer.Lost(t.Context(), l.api, slices.Concat(l.byClient.Names(), l.byKubectl.Names())...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lost {
		t.Errorf("%s was acknowledged and is lost", name)
	}
	t.Logf("%d writes by the Go client and %d by kubectl were acknowledged; %d are lost", l.byClient.Count(), l.byKubectl.Count(), len(lost))
}
