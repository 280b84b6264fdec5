// Package ha_test kills apiservers of a control plane of three while it is used,
// and measures for how long nothing could be written. It knows no package of the
// services.
package ha_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/e2e/host"
	"keelson.dev/proto/client"
)

var kills = flag.Int("kills", 6, "how many apiservers are killed, one after the other")

// machine fails the run where a cluster leaves something behind.
var machine *host.Watch

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if machine, err = host.Look(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(host.Run(m, machine))
}

// controlPlane is a cluster of several apiservers.
type controlPlane struct {
	t         *testing.T
	bin, home string
}

// binaries is the directory of the programs.
func binaries(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("KEELSON_BIN")
	if bin == "" {
		bin = "../../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "keel")); err != nil {
		t.Fatalf("%v: run `make e2e`, which builds the programs first", err)
	}
	return bin
}

// start starts a cluster of three apiservers.
func start(t *testing.T) *controlPlane {
	t.Helper()
	return begin(t, binaries(t), 3)
}

// begin starts a cluster of the programs in a directory, with that many apiservers.
func begin(t *testing.T, bin string, apiservers int) *controlPlane {
	t.Helper()
	c := &controlPlane{t: t, bin: bin, home: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(c.home, "log", "apiserver-*.log"))
			for _, l := range logs {
				if out, err := exec.Command("tail", "-n", "30", l).Output(); err == nil {
					t.Logf("%s:\n%s", filepath.Base(l), out)
				}
			}
		}
		if out, err := c.try("keel", "delete", "--home", c.home); err != nil {
			t.Errorf("keel delete: %v\n%s", err, out)
		}
	})
	began := time.Now()
	out, err := c.try("keel", "up", "--home", c.home, "--apiservers", fmt.Sprint(apiservers), "--nodes", "0", "--simulated-nodes", "3")
	machine.Cluster(c.home)
	if err != nil {
		t.Fatalf("keel up: %v\n%s", err, out)
	}
	t.Logf("%d apiservers were ready after %s", apiservers, time.Since(began).Round(time.Millisecond))
	return c
}

func (c *controlPlane) try(program string, args ...string) (string, error) {
	return c.feed("", program, args...)
}

// feed runs a program with a text as its standard input.
func (c *controlPlane) feed(stdin, program string, args ...string) (string, error) {
	path := filepath.Join(c.bin, program)
	if _, err := os.Stat(path); err != nil {
		path = filepath.Join(c.bin, "runtime", program)
	}
	// To replace a member that is down takes more than a minute as it is.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.home, "kubeconfig"), "NO_PROXY=*", "no_proxy=*")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

type process struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	GRPC    string `json:"grpc"`
	HTTPS   string `json:"https"`
	Healthy bool   `json:"healthy"`
	Reason  string `json:"reason"`
}

func (c *controlPlane) processes() ([]process, error) {
	out, err := c.try("keel", "status", "-o", "json", "--home", c.home)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	var s struct{ Services []process }
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, err
	}
	return s.Services, nil
}

func (c *controlPlane) apiservers() ([]process, error) {
	list, err := c.processes()
	return slices.DeleteFunc(list, func(p process) bool { return !strings.HasPrefix(p.Name, "apiserver-") }), err
}

// client dials all apiservers as the administrator.
func (c *controlPlane) client() *client.Client {
	c.t.Helper()
	return c.dial(c.endpoints())
}

// endpoints are the gRPC ports of all apiservers.
func (c *controlPlane) endpoints() (out []string) {
	c.t.Helper()
	list, err := c.apiservers()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, p := range list {
		out = append(out, p.GRPC)
	}
	return out
}

// tls is how the administrator connects.
func (c *controlPlane) tls() *tls.Config {
	c.t.Helper()
	pki := filepath.Join(c.home, "pki")
	cert, err := tls.LoadX509KeyPair(filepath.Join(pki, "admin", "tls.crt"), filepath.Join(pki, "admin", "tls.key"))
	if err != nil {
		c.t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		c.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// address is where kubectl connects.
func (c *controlPlane) address() string {
	c.t.Helper()
	out, err := c.try("kubectl", "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
	if err != nil {
		c.t.Fatal(out)
	}
	return out
}

// dial dials some endpoints as the administrator.
func (c *controlPlane) dial(endpoints []string, options ...grpc.DialOption) *client.Client {
	c.t.Helper()
	api, err := client.Dial(client.Config{Endpoints: endpoints, UserAgent: "ha-test", DialOptions: options, TLS: c.tls()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = api.Close() })
	return api
}

// kill ends an apiserver by SIGKILL and waits until another process of its name is
// healthy.
func (c *controlPlane) kill(victim process) {
	c.t.Helper()
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		c.t.Fatalf("kill -9 of %s: %v", victim.Name, err)
	}
	deadline := time.Now().Add(60 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := c.apiservers()
		why := fmt.Sprint(err)
		healthy := 0
		for _, p := range list {
			if p.Healthy && (p.Name != victim.Name || p.PID != victim.PID) {
				healthy++
			} else {
				why = p.Name + ": " + p.Reason
			}
		}
		if healthy == 3 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("after %s was killed: %s", victim.Name, why)
		}
		<-tick.C
	}
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
			w.names = append(w.names, name)
			w.times = append(w.times, time.Now())
		} else {
			w.last = err
		}
		w.mu.Unlock()
	}
}

// longest is the longest time between two acknowledged writes since from.
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

// acknowledged is how many writes there were.
func (w *writer) acknowledged() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.names)
}

// TestApiserversDie kills one apiserver after the other, the leaders of etcd and
// raft among them, under writes through the Go client and kubectl.
func TestApiserversDie(t *testing.T) {
	c := start(t)
	api := c.client()
	maps := client.For[*corev1.ConfigMap](api)
	const ns = "default"

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen := map[string]int{}
	var seenMu sync.Mutex
	cache := client.NewCache(api, client.CacheOptions[*corev1.ConfigMap]{Namespace: ns})
	cache.Subscribe(func(ev client.Event[*corev1.ConfigMap]) {
		seenMu.Lock()
		defer seenMu.Unlock()
		if ev.Type == client.Added {
			seen[ev.Object.Name]++
		}
	})
	var wg sync.WaitGroup
	wg.Go(func() { _ = cache.Run(ctx) })
	<-cache.Synced()

	stop := make(chan struct{})
	var byClient, byKubectl writer
	var writers sync.WaitGroup
	writers.Go(func() {
		byClient.run(stop, "client", func(name string) error {
			call, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := maps.Create(call, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
			return err
		})
	})
	writers.Go(func() {
		byKubectl.run(stop, "kubectl", func(name string) error {
			out, err := c.try("kubectl", "create", "configmap", name, "--request-timeout=1s")
			if err != nil {
				err = errors.New(out)
			}
			return err
		})
	})
	var gaps []time.Duration
	for i := range *kills {
		list, err := c.apiservers()
		if err != nil {
			t.Fatal(err)
		}
		victim := list[i%len(list)]
		began := time.Now()
		before := byKubectl.acknowledged()
		c.kill(victim)
		for byKubectl.acknowledged() < before+3 { // so that the gap has an end
			if time.Since(began) > 30*time.Second {
				t.Fatalf("kubectl writes nothing since %s was killed: %v", victim.Name, byKubectl.last)
			}
			<-time.After(20 * time.Millisecond)
		}
		gap, kubectlGap := byClient.longest(began), byKubectl.longest(began)
		t.Logf("kill %d: %s, healthy after %s, no write for %s (Go client) and %s (kubectl)",
			i, victim.Name, time.Since(began).Round(time.Millisecond), gap.Round(time.Millisecond), kubectlGap.Round(time.Millisecond))
		gaps = append(gaps, gap, kubectlGap)
	}
	close(stop)
	writers.Wait()

	list, _, err := maps.List(context.Background(), client.ListOptions{Namespace: ns})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, cm := range list {
		there[cm.Name] = true
	}
	for _, name := range append(byClient.names, byKubectl.names...) {
		if !there[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for cache.Len() < len(there) && time.Now().Before(deadline) {
		<-time.After(20 * time.Millisecond)
	}
	cancel()
	wg.Wait()
	for name := range there {
		if seen[name] != 1 {
			t.Errorf("the watch saw the creation of %s %d times", name, seen[name])
		}
	}
	slices.Sort(gaps)
	t.Logf("%d and %d writes; no write for %s in the median, %s at worst", len(byClient.names), len(byKubectl.names), gaps[len(gaps)/2], gaps[len(gaps)-1])
	if worst := gaps[len(gaps)-1]; worst > 3*time.Second {
		t.Errorf("nothing could be written for %s, want 3 s at most", worst)
	}
}
