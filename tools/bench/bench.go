package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"keelson.dev/tools/internal/pki"
)

// bench measures one system, whose servers are started when a figure first needs them.
type bench struct {
	sys    system
	dir    string
	procs  []*process
	https  string
	grpc   string
	seq    atomic.Int64
	nodes  int // of figures that need a whole control plane
	pods   int
	latest measured
}

// measured is what a figure found. A field is zero if the figure does not measure it.
type measured struct {
	// rate is the figure itself, in its unit.
	rate float64
	// cost is the CPU time of all servers for each request.
	cost time.Duration
	// p50 and p99 are how long callers waited for an answer.
	p50, p99 time.Duration
	// memory is the proportional set size of all servers in bytes: its peak under load, or at rest.
	memory int64
	// idle is the CPU use of all servers at rest, in cores.
	idle float64
	note string
}

func newBench(sys system, nodes, pods int) (*bench, error) {
	if err := sys.check(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "keelson-bench-*")
	if err != nil {
		return nil, err
	}
	a, err := pki.Open(filepath.Join(dir, "pki"))
	if err != nil {
		return nil, err
	}
	for _, id := range []pki.Identity{
		{Name: "apiserver", CommonName: "kube-apiserver", Organization: []string{"system:masters"}, Hosts: []string{"localhost", "127.0.0.1"}},
		{Name: "admin", CommonName: "bench", Organization: []string{"system:masters"}},
	} {
		if err := a.Ensure(id); err != nil {
			return nil, err
		}
	}
	return &bench{sys: sys, dir: dir, nodes: nodes, pods: pods}, pki.EnsureKey(filepath.Join(dir, "pki", "sa.key"))
}

func (b *bench) close() {
	b.stop()
	_ = os.RemoveAll(b.dir)
}

// stop ends the servers, the last one first.
func (b *bench) stop() {
	for i := len(b.procs) - 1; i >= 0; i-- {
		b.procs[i].stop()
	}
	b.procs = nil
}

// start runs the servers and returns how long it took until they answered /readyz.
func (b *bench) start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	var err error
	b.procs, err = b.sys.serve(ctx, b)
	return time.Since(began), err
}

// need starts the servers unless they are running.
func (b *bench) need(ctx context.Context) error {
	if b.procs != nil {
		return nil
	}
	_, err := b.start(ctx)
	return err
}

// measureStart measures the time from the start of the servers, without data, until they are
// ready.
func measureStart(ctx context.Context, b *bench) (float64, string, error) {
	var times []time.Duration
	for range 5 {
		b.stop()
		if err := os.RemoveAll(filepath.Join(b.dir, "data")); err != nil {
			return 0, "", err
		}
		d, err := b.start(ctx)
		if err != nil {
			return 0, "", err
		}
		times = append(times, d)
	}
	slices.Sort(times)
	return float64(times[2].Milliseconds()), "empty data, median of 5", nil
}

func (b *bench) tls() (*tls.Config, error) {
	dir := filepath.Join(b.dir, "pki", "admin")
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}, nil
}

// clientset returns a client-go client with typical settings: protobuf, one connection, and no
// rate limit.
func (b *bench) clientset() (*kubernetes.Clientset, error) {
	dir := filepath.Join(b.dir, "pki", "admin")
	return kubernetes.NewForConfig(&rest.Config{
		Host: "https://" + b.https,
		QPS:  -1,
		ContentConfig: rest.ContentConfig{
			ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		},
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
		},
	})
}

func (b *bench) dial() (*grpc.ClientConn, error) {
	config, err := b.tls()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(b.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithUserAgent("bench"))
}

// namespace creates a namespace for one figure.
func (b *bench) namespace(ctx context.Context, c *kubernetes.Clientset) (string, error) {
	name := fmt.Sprintf("bench-%d", b.seq.Add(1))
	_, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	// No controller is running that would create the default service account.
	_, err = c.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	return name, err
}

// pod returns a simple pod, which takes about 1 KiB in the store.
func pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "bench", "tier": "load"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example/bench/app:1.0",
				Env:   []corev1.EnvVar{{Name: "MODE", Value: "bench"}},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
				}},
			}},
		},
	}
}

// cpu returns the CPU time that the servers have used.
func (b *bench) cpu() time.Duration { return cpuOf(b.pids()) }

func (b *bench) pids() []int {
	pids := make([]int, len(b.procs))
	for i, p := range b.procs {
		pids[i] = p.cmd.Process.Pid
	}
	return pids
}

// rate is like the function rate. It also records the cost and the latencies.
func (b *bench) rate(ctx context.Context, callers, n int, call func(ctx context.Context, i int) error) (float64, error) {
	took := make([]time.Duration, n)
	before := b.cpu()
	r, err := rate(ctx, callers, n, func(ctx context.Context, i int) error {
		began := time.Now()
		err := call(ctx, i)
		took[i] = time.Since(began)
		return err
	})
	b.latest.cost = (b.cpu() - before) / time.Duration(n)
	b.quantiles(took)
	return r, err
}

// quantiles records the median and the 99th percentile.
func (b *bench) quantiles(took []time.Duration) {
	slices.Sort(took)
	b.latest.p50, b.latest.p99 = took[len(took)/2], took[len(took)*99/100]
}

// rate makes n calls from the given number of goroutines and returns calls per second.
func rate(ctx context.Context, callers, n int, call func(ctx context.Context, i int) error) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var failure error
	began := time.Now()
	for range callers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || ctx.Err() != nil {
					return
				}
				if err := call(ctx, i); err != nil {
					once.Do(func() { failure = err; cancel() })
					return
				}
			}
		})
	}
	wg.Wait()
	if failure != nil {
		return 0, failure
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
